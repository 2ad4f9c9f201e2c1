"""LegoNN: recognition by modules that meet at distributions over symbols, so that a decoder fits any encoder; Flax NNX.

The encoder module hears (waveform, log-mel features, Conformer layers) and controls its length: positions at `ratio`
to the frames attend to them, and say a distribution over symbols each, which CTC grounds in the transcript. The
decoder module reads these distributions alone: the ingestor mixes the embeddings of symbols by them, whole and with
gradients ("weighted"), or of the likeliest few without ("beam"), and a Transformer decoder writes the transcript. The
loss is the CTC loss of the encoder plus the cross entropy of the decoder.

`frozen="decoder"` trains an encoder module for a decoder that stays as it is, as when one is taken from another task.

Parameters: encoder 24 L d^2 + 9 n^2 + (f / 4) n d + 12 C d^2 (length control) + V d; decoder 16 D d^2 + 3 V d.

Deviations from the paper: the encoder's layers are Conformer's, and "beam" mixes embeddings as "weighted" does, where
the paper's ingestor also convolves over them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from autopar.models.data.speech import ABOUT
from autopar.models.layers.attention import kernel_init
from autopar.models.layers.conformer import Encoder, SpeechConfig, listen
from autopar.models.layers.ctc import ctc_loss, token_errors
from autopar.models.layers.decoder import Decoder, begun, transcript_loss
from autopar.models.layers.interface import LengthController, WeightedEmbedding, likeliest
from autopar.models.recipe import Batch, Family, LossOut, Metrics, Pytree, Recipe, make_recipe, unknown

INGESTORS = ("weighted", "beam")
FROZEN = ("", "decoder")


@dataclass(frozen=True, kw_only=True)
class LegoConfig(SpeechConfig):
    """Sizes: `layers` in the encoder, `length_layers` that control its length, `decoder_layers`.

    There are `ratio` positions to a frame, at least 2/3 so that all transcripts fit. The "beam" ingestor hands over the
    `beam` likeliest symbols. `frozen` is "decoder", or empty to train everything.
    """

    layers: int = 1
    length_layers: int = 1
    decoder_layers: int = 1
    ratio: float = 0.75
    ingestor: str = "weighted"
    beam: int = 4
    frozen: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ingestor not in INGESTORS:
            raise ValueError(unknown("ingestor", self.ingestor, INGESTORS))
        if self.frozen not in FROZEN:
            raise ValueError(unknown("part to freeze", self.frozen, FROZEN))
        if self.beam > self.classes:
            raise ValueError(
                f"a beam of {self.beam} was asked for, of {self.classes} classes; ask for no more than them"
            )
        if self.norm != "layer":
            raise ValueError(f"LegoNN has no running statistics: norm must be 'layer', got {self.norm!r}")
        if not 2 / 3 <= self.ratio <= 1 or self.frames * self.ratio % 1:
            raise ValueError(
                f"a ratio of {self.ratio} to {self.frames} frames was asked for; it must be from 2/3 to 1, and give a "
                "whole number of positions"
            )

    @property
    def positions(self) -> int:
        """How many distributions the longest utterance has."""
        return int(self.frames * self.ratio)


PRESETS = {
    "toy": LegoConfig(relative=False),
    "asr": LegoConfig(
        hidden=512,
        layers=12,
        length_layers=6,
        decoder_layers=6,
        heads=8,
        kernel=31,
        channels=256,
        features=80,
        frames=512,
        hop=160,
        sample_rate=16_000,
        classes=10_000,
        batch_size=256,
        dtype="bfloat16",
        learning_rate=5e-4,
    ),
}


class EncoderModule(nnx.Module):
    """Utterances -> a distribution over symbols at each of the positions of a controlled length."""

    def __init__(self, c: LegoConfig, rngs: nnx.Rngs):
        self.config = c
        self.encoder = Encoder(c, rngs)
        self.control = LengthController(c.hidden, c.length_layers, c.heads, rngs, **c.dtypes)
        self.head = nnx.Linear(c.hidden, c.classes, kernel_init=kernel_init, rngs=rngs, **c.dtypes)

    def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """A batch of `data.speech` -> log-marginals [b, n, classes], and which positions count, [b, n]."""
        features, heard = listen(self.config, batch)
        x, counts = self.control(self.encoder(features, heard), heard, self.config.positions)
        return jax.nn.log_softmax(self.head(x).astype(self.config.param_dtype)), counts


class DecoderModule(nnx.Module):
    """Distributions over symbols -> what follows each symbol of the transcript."""

    def __init__(self, c: LegoConfig, rngs: nnx.Rngs):
        self.config = c
        self.ingestor = WeightedEmbedding(c.classes, c.hidden, rngs, **c.dtypes)
        self.decoder = Decoder(c.hidden, c.decoder_layers, c.heads, c.classes, rngs, **c.dtypes)

    def __call__(self, marginals: jax.Array, counts: jax.Array, transcript: jax.Array) -> jax.Array:
        """[b, n, classes], which positions count [b, n], and the transcript [b, u] -> logits [b, u + 1, classes]."""
        c = self.config
        if c.ingestor == "beam":
            marginals = likeliest(marginals, c.beam)
        return self.decoder(begun(transcript), self.ingestor(marginals), counts)


def make(family: Family, preset: str, c: LegoConfig) -> Recipe:
    """Builds the recipe; utterances are `data.speech`, and losses are in nats per symbol."""
    modules = {"encoder": EncoderModule, "decoder": DecoderModule}
    structures = {
        name: nnx.graphdef(nnx.eval_shape(lambda module=module: module(c, nnx.Rngs(0))))
        for name, module in modules.items()
    }

    def init(key: jax.Array) -> tuple[Pytree, None]:
        keys = dict(zip(modules, jax.random.split(key), strict=True))
        return {name: nnx.state(module(c, nnx.Rngs(keys[name])), nnx.Param) for name, module in modules.items()}, None

    def score(params: Pytree, batch: Batch) -> tuple[jax.Array, Metrics, tuple[jax.Array, jax.Array]]:
        params = {name: jax.lax.stop_gradient(p) if name == c.frozen else p for name, p in params.items()}
        encoder, decoder = (nnx.merge(structures[name], params[name]) for name in modules)
        log_marginals, counts = encoder(batch)
        written = decoder(jnp.exp(log_marginals), counts, batch["transcript"])
        symbols = (batch["transcript"] != 0).sum().astype(c.param_dtype)
        heard = ctc_loss(log_marginals, counts, batch["transcript"]).sum() / symbols
        nll, wrong = transcript_loss(written, batch["transcript"])
        said = nll.sum() / symbols
        metrics = {"encoder_loss": heard, "decoder_loss": said, "misspelt": wrong.sum() / symbols}
        return heard + said, metrics, (log_marginals, counts)

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        value, metrics, _ = score(params, batch)
        return value, (metrics, None)

    def evaluate(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        value, metrics, (log_marginals, counts) = score(params, batch)
        errors = token_errors(log_marginals, counts, batch["transcript"]).sum()
        rate = errors / (batch["transcript"] != 0).sum().astype(c.param_dtype)
        return value, (metrics | {"token_error_rate": rate}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        evaluate=evaluate,
        batch=c.batch,
        batch_spec=c.batch_spec,
        frozen=(c.frozen,) if c.frozen else (),
        unit="seconds",
        units_per_example=c.seconds,
        about_batches=ABOUT,
    )


FAMILY = Family(
    name="legonn",
    summary="speech to text by modules that meet at distributions over symbols, of controlled length; Flax NNX",
    source="Dalmia et al. 2022 (LegoNN)",
    presets=PRESETS,
    make=make,
)
