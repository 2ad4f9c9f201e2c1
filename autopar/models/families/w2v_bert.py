"""w2v-BERT: pre-training of speech on sound alone, by telling masked frames apart and by naming them; Flax NNX.

Log-mel features -> feature encoder (two convolutions of stride 2) -> spans are masked -> contrastive module (Conformer
layers), whose output is to resemble the quantised frame under the mask more than other masked frames' of the utterance
-> masked prediction module (more layers), which is to name that frame's code. The quantiser hears frames unmasked.
Loss: contrastive + 0.1 diversity of codes + cross entropy of codes, each a mean over the masked frames of the batch
(diversity: over utterances). Spans, distractors and Gumbel noise are drawn from the state's key.

Parameters: those of a Conformer without relative positions of all layers, (23 d^2 + K d) L + 9 n^2 + (f / 4) n d, plus
quantiser (G V d + V q), projection d q and codes' output G V d, for V codes in G groups that are q numbers together.
The 1.0 billion of "xxl" is rounded: its 42 layers have 1.01, all is 1.02.

Deviations from the paper: what is masked becomes one trained vector, as in wav2vec 2.0; the Gumbel temperature stays;
diversity is each utterance's own, so that the examples of a batch are independent.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from autopar.models.layers.attention import kernel_init
from autopar.models.layers.conformer import SpeechConfig, Stack, Subsampling, listen
from autopar.models.layers.contrastive import contrastive_loss, draw_distractors, masked_spans
from autopar.models.layers.plain import smoothed_cross_entropy
from autopar.models.layers.quantiser import Quantiser, diversity_loss
from autopar.models.recipe import Batch, Family, LossOut, Pytree, Recipe, make_recipe

DIVERSITY_WEIGHT = 0.1
SOUND = ("waveform", "length")


@dataclass(frozen=True, kw_only=True)
class W2vBertConfig(SpeechConfig):
    """Sizes: `layers` in the contrastive module and `prediction_layers` after it.

    The quantiser has `groups` books of `codes` vectors, `code_size` numbers together. A frame begins a masked span of
    `mask_span` with probability `mask_share`, and is told apart from `distractors`.
    """

    layers: int = 1
    prediction_layers: int = 1
    groups: int = 2
    codes: int = 16
    code_size: int = 32
    distractors: int = 8
    mask_share: float = 0.15
    mask_span: int = 3
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "layer":
            raise ValueError(f"w2v-BERT has no running statistics: norm must be 'layer', got {self.norm!r}")
        if self.code_size % self.groups:
            raise ValueError(f"code_size ({self.code_size}) must be a multiple of groups ({self.groups})")
        if not 0.0 < self.mask_share < 1.0 or self.mask_span >= self.frames:
            raise ValueError(
                f"mask_share must be in (0, 1) and mask_span less than frames ({self.frames}), "
                f"got {self.mask_share} and {self.mask_span}"
            )


def _large(prediction_layers: int) -> W2vBertConfig:
    return W2vBertConfig(
        hidden=1024,
        layers=12,
        prediction_layers=prediction_layers,
        heads=8,
        kernel=5,
        channels=256,
        features=80,
        frames=512,
        hop=160,
        sample_rate=16_000,
        groups=1,
        codes=1024,
        code_size=1024,
        distractors=100,
        mask_share=0.065,
        mask_span=10,
        batch_size=256,
        dtype="bfloat16",
    )


PRESETS = {"toy": W2vBertConfig(), "xl": _large(12), "xxl": _large(30)}


class W2vBert(nnx.Module):
    """Feature encoder, quantiser, contrastive and masked prediction modules."""

    def __init__(self, c: W2vBertConfig, rngs: nnx.Rngs):
        self.config = c
        self.subsampling = Subsampling(c, rngs)
        self.mask = nnx.Param(nnx.initializers.normal(0.1)(rngs.params(), (c.hidden,), c.param_dtype))
        self.quantiser = Quantiser(c.hidden, c.groups, c.codes, c.code_size, rngs, **c.dtypes)
        self.contrastive = Stack(c, c.layers, rngs)
        self.project = nnx.Linear(c.hidden, c.code_size, kernel_init=kernel_init, rngs=rngs, **c.dtypes)
        self.prediction = Stack(c, c.prediction_layers, rngs)
        shape = (c.groups, c.codes)
        self.head = nnx.LinearGeneral(c.hidden, shape, kernel_init=kernel_init, rngs=rngs, **c.dtypes)

    def __call__(self, batch: Batch, key: jax.Array, noise: jax.Array | None) -> LossOut:
        """A batch of `data.speech`, the key of spans and distractors, and that of Gumbel noise or None -> the loss."""
        c = self.config
        span_key, distractor_key = jax.random.split(key)
        features, heard = listen(c, batch)
        frames = self.subsampling(features)
        targets, ids, probabilities = self.quantiser(frames, noise)
        masked = masked_spans(span_key, heard, c.mask_share, c.mask_span)
        x = jnp.where(masked[..., None], self.mask[...].astype(frames.dtype), frames)
        context = self.contrastive(x, heard)
        distractors = draw_distractors(distractor_key, masked, c.distractors)
        apart = contrastive_loss(self.project(context), targets, masked, distractors).sum()
        logits = self.head(self.prediction(context, heard)).astype(c.param_dtype)
        nll = smoothed_cross_entropy(logits, ids, 0.0).mean(axis=-1)
        count = jnp.maximum(masked.sum(), 1).astype(c.param_dtype)
        apart, named = apart / count, jnp.where(masked, nll, 0.0).sum() / count
        diversity = diversity_loss(probabilities, heard).mean()
        metrics = {"contrastive": apart, "prediction": named, "diversity": diversity}
        return apart + DIVERSITY_WEIGHT * diversity + named, (metrics, None)


def make(family: Family, preset: str, c: W2vBertConfig) -> Recipe:
    """Builds the recipe; utterances are `data.speech`, and what is said in them is not read."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: W2vBert(c, nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[Pytree, None]:
        return nnx.state(W2vBert(c, nnx.Rngs(key)), nnx.Param), None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        model = nnx.merge(structure, params)
        if key is None:  # in evaluation, always the same spans
            return model(batch, jax.random.key(0), None)
        spans, noise = jax.random.split(key)
        return model(batch, spans, noise)

    def sounds(seed: int) -> Batch:
        batch = c.batch(seed)
        return {name: batch[name] for name in SOUND}

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        batch=sounds,
        batch_spec={name: c.batch_spec[name] for name in SOUND},
        dropout=True,
        unit="seconds",
        units_per_example=c.seconds,
        about_batches="synthesised speech without transcripts, a new utterance each time",
    )


FAMILY = Family(
    name="w2v-bert",
    summary="speech pre-training: masked frames told apart and named by a quantiser's codes, on Conformers; Flax NNX",
    source="Chung et al. 2021 (w2v-BERT)",
    presets=PRESETS,
    make=make,
)
