"""Conformer: speech recognition from the waveform, by CTC or by CTC and an attention decoder together; Flax NNX.

Waveform -> log-mel features -> two convolutions of stride 2 -> Conformer layers -> a class for each frame, trained by
CTC. With `head="aed"` a Transformer decoder reads the frames and writes the transcript, and the loss is 0.3 CTC +
0.7 cross entropy (Watanabe et al. 2017). With `causal` no frame reads ahead: convolutions look back, attention sees
`left_context` frames, and recognition can go along with the speaker.

Parameters: 24 L d^2 (two feed-forwards 16 d^2, attention 4 d^2 and its positions d^2, convolution module 3 d^2)
+ 9 n^2 + (f / 4) n d (subsampling through n channels) + V d (output), plus biases, norms and depthwise kernels
(K d per layer); a decoder has 16 D d^2 + 2 V d. Without relative positions the attention has d^2 less. The published
counts include an LSTM transducer decoder, which is no part of this model: 1.5 million of the 10.3 of S, one LSTM of 3.3
of the 30.7 of M and the 118.8 of L, two in XL and XXL. The 1.0 billion of XXL is rounded: its 42 layers have 1.01.

Left out of the papers' training: dropout, SpecAugment, weight noise and the transducer loss. Not in the papers: the
last matrix of each residual branch begins small (`branch_init`), without which deep encoders are slow to start.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from autopar.models.data.speech import ABOUT
from autopar.models.layers.attention import kernel_init
from autopar.models.layers.conformer import Encoder, SpeechConfig, listen
from autopar.models.layers.ctc import ctc_loss, token_errors
from autopar.models.layers.decoder import Decoder, begun, transcript_loss
from autopar.models.recipe import Batch, Family, LossOut, Metrics, Pytree, Recipe, make_recipe, unknown

HEADS = ("ctc", "aed")
CTC_SHARE = 0.3  # of a joint loss


@dataclass(frozen=True, kw_only=True)
class ConformerConfig(SpeechConfig):
    """Sizes: those of the encoder, and `head`, "ctc" or "aed", the latter with `decoder_layers`."""

    head: str = "ctc"
    decoder_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in HEADS:
            raise ValueError(unknown("head", self.head, HEADS))


def _large(
    hidden: int, layers: int, heads: int, kernel: int, channels: int, *, norm: str, relative: bool
) -> ConformerConfig:
    # Utterances of up to 20 seconds.
    return ConformerConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kernel=kernel,
        channels=channels,
        norm=norm,
        relative=relative,
        features=80,
        frames=512,
        hop=160,
        sample_rate=16_000,
        classes=1024,
        batch_size=256,
        dtype="bfloat16",
    )


PRESETS = {
    "toy": ConformerConfig(),
    "s": _large(144, 16, 4, 32, 144, norm="batch", relative=True),
    "m": _large(256, 16, 4, 32, 256, norm="batch", relative=True),
    "l": _large(512, 17, 8, 32, 512, norm="batch", relative=True),
    "xl": _large(1024, 24, 8, 5, 256, norm="layer", relative=False),
    "xxl": _large(1024, 42, 8, 5, 256, norm="layer", relative=False),
    "g": _large(3072, 36, 16, 5, 768, norm="layer", relative=False),
}


class Conformer(nnx.Module):
    """An encoder, a class for each of its frames and, with `head="aed"`, a decoder."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        self.config = c
        self.encoder = Encoder(c, rngs)
        self.head = nnx.Linear(c.hidden, c.classes, kernel_init=kernel_init, rngs=rngs, **c.dtypes)
        if c.head == "aed":
            self.decoder = Decoder(c.hidden, c.decoder_layers, c.heads, c.classes, rngs, **c.dtypes)

    def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """A batch of `data.speech` -> frames' logits [b, s, classes], which frames count [b, s], and the decoder's."""
        c = self.config
        features, heard = listen(c, batch)
        encoded = self.encoder(features, heard)
        logits = self.head(encoded).astype(c.param_dtype)
        if c.head == "ctc":
            return logits, heard, None
        return logits, heard, self.decoder(begun(batch["transcript"]), encoded, heard)


def make(family: Family, preset: str, c: ConformerConfig) -> Recipe:
    """Builds the recipe; utterances are `data.speech`, and losses are in nats per symbol."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: Conformer(c, nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        params, stats = nnx.state(Conformer(c, nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        # Flax keeps running statistics in float32, but returns them in the dtype it computed in.
        return params, jax.tree.map(lambda s: s.astype(c.param_dtype), stats)

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        model = nnx.merge(structure, params, stats, copy=True)
        value, _ = score(model, batch)
        return value, ({}, nnx.state(model, nnx.BatchStat))

    def evaluate(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        model = nnx.merge(structure, params, stats, copy=True)
        model.eval()
        value, metrics = score(model, batch, evaluated=True)
        return value, (metrics, stats)

    def score(model: Conformer, batch: Batch, evaluated: bool = False) -> tuple[jax.Array, Metrics]:
        logits, heard, written = model(batch)
        transcript = batch["transcript"]
        symbols = (transcript != 0).sum().astype(c.param_dtype)
        total = ctc_loss(logits, heard, transcript).sum()
        metrics = {}
        if evaluated:
            metrics["token_error_rate"] = token_errors(logits, heard, transcript).sum() / symbols
        if written is not None:
            nll, wrong = transcript_loss(written, transcript)
            total = CTC_SHARE * total + (1.0 - CTC_SHARE) * nll.sum()
            metrics["misspelt"] = wrong.sum() / symbols
        return total / symbols, metrics

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        evaluate=evaluate,
        batch=c.batch,
        batch_spec=c.batch_spec,
        unit="seconds",
        units_per_example=c.seconds,
        about_batches=ABOUT,
    )


FAMILY = Family(
    name="conformer",
    summary="speech to text: waveform, macaron feed-forwards, relative attention, convolution, CTC or AED; Flax NNX",
    source="Gulati et al. 2020; XL and XXL from Zhang et al. 2020 (Pushing the Limits), G from 2021 (BigSSL)",
    presets=PRESETS,
    make=make,
)
