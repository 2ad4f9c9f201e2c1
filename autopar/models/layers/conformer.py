"""The Conformer encoder (Gulati et al. 2020) in Flax NNX, and how audio comes into it: shared by all speech families.

Waveform -> log-mel features [b, 4 s, f] -> two convolutions of stride 2 -> frames [b, s, d] -> layers of feed-forward,
attention, convolution and feed-forward. Nothing up to the first layer reads ahead, and with `causal` no layer does.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from autopar.models.data.speech import LOG_MEL_MEAN, LOG_MEL_STD, SpeechSizes, speech_batch, speech_spec
from autopar.models.layers.attention import Attention, embedded_distances, kernel_init
from autopar.models.layers.depthwise import Depthwise
from autopar.models.layers.logmel import fft_length, log_mel, mel_filters
from autopar.models.recipe import Config, unknown

NORMS = ("batch", "layer")
SUBSAMPLING = 4  # features to a frame
FRAMES_PER_TOKEN = 3  # at the least, of which 2 are the shortest sound


@dataclass(frozen=True, kw_only=True)
class SpeechConfig(Config):
    """Sizes of an encoder and of what it hears.

    Attributes:
        hidden: width.
        layers: Conformer layers.
        heads: attention heads.
        kernel: width of the depthwise convolutions, in frames.
        features: mel filters.
        frames: frames of the longest utterance; each is four hops.
        hop: samples from one feature frame to the next.
        sample_rate: samples in a second.
        channels: of the subsampling convolutions.
        classes: the blank, which is 0, and the symbols.
        norm: the convolution module's: "batch" or "layer".
        relative: whether attention knows distances; XL and larger do not.
        causal: no frame reads what comes after it, as when one recognises while listening.
        left_context: frames that a causal layer's attention sees, itself included.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kernel: int = 7
    features: int = 16
    frames: int = 16
    hop: int = 80
    sample_rate: int = 8000
    channels: int = 16
    classes: int = 16
    norm: str = "layer"
    relative: bool = True
    causal: bool = False
    left_context: int = 64

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(unknown("norm", self.norm, NORMS))
        if self.hidden % self.heads or self.features % SUBSAMPLING:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}), and features "
                f"({self.features}) of 4, by which they are subsampled"
            )
        if self.hop % 2:
            raise ValueError(f"a frame is 2.5 hops, so hop must be even, got {self.hop}")
        mel_filters(self.features, fft_length(self.hop), self.sample_rate)
        _ = self.speech

    @property
    def speech(self) -> SpeechSizes:
        """What a batch of utterances is like."""
        frame = SUBSAMPLING * self.hop
        return SpeechSizes(
            batch_size=self.batch_size,
            samples=self.frames * frame,
            sample_rate=self.sample_rate,
            symbols=self.classes - 1,
            tokens=self.frames // FRAMES_PER_TOKEN,
            shortest=2 * frame,
        )

    @property
    def seconds(self) -> float:
        """How long the longest utterance is."""
        return self.speech.samples / self.sample_rate

    @property
    def branch_init(self) -> nnx.Initializer:
        """Of the last matrix of a residual branch: four a layer add up to no more than what they are added to.

        So Radford et al. 2019 (section 2.3); else what a frame sounds like is lost in a deep stack's first mixtures.
        """
        return nnx.initializers.variance_scaling(1 / (4 * self.layers), "fan_avg", "uniform")

    @property
    def dtypes(self) -> dict[str, Any]:
        """What NNX's layers are told of dtypes."""
        return {"dtype": self.compute_dtype, "param_dtype": self.param_dtype}

    def batch(self, seed: int) -> dict[str, np.ndarray]:
        """A batch of utterances with transcripts: see `data.speech`."""
        return speech_batch(seed, self.speech, self.param_dtype)

    @property
    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of `batch`."""
        return speech_spec(self.speech, self.param_dtype)


def listen(c: SpeechConfig, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Features [b, 4 s, f], about 0 and 1 in mean and spread, and which frames [b, s] belong to the utterance."""
    features = log_mel(batch["waveform"], c.features, c.hop, c.sample_rate)
    start = jnp.arange(c.frames) * (SUBSAMPLING * c.hop)
    return (features - LOG_MEL_MEAN) / LOG_MEL_STD, start < batch["length"][:, None]


def visible_frames(c: SpeechConfig, frames: int, heard: jax.Array | None) -> jax.Array | None:
    """Which frames each sees: booleans that broadcast to [b, 1, s, s], or None where all see all."""
    visible = None if heard is None else heard[:, None, None, :]
    if not c.causal:
        return visible
    back = jnp.arange(frames)[:, None] - jnp.arange(frames)
    window = (back >= 0) & (back < c.left_context)
    return window if visible is None else window & visible


class FeedForward(nnx.Module):
    """Norm, dense to 4 d, swish, dense."""

    def __init__(self, c: SpeechConfig, rngs: nnx.Rngs):
        options: dict[str, Any] = {"rngs": rngs, **c.dtypes}
        self.norm = nnx.LayerNorm(c.hidden, **options)
        self.up = nnx.Linear(c.hidden, 4 * c.hidden, kernel_init=kernel_init, **options)
        self.down = nnx.Linear(4 * c.hidden, c.hidden, kernel_init=c.branch_init, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        return self.down(jax.nn.swish(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """Norm, pointwise convolution with a gated linear unit, depthwise convolution, norm, swish, pointwise."""

    def __init__(self, c: SpeechConfig, rngs: nnx.Rngs):
        options: dict[str, Any] = {"rngs": rngs, **c.dtypes}
        self.norm = nnx.LayerNorm(c.hidden, **options)
        self.expand = nnx.Linear(c.hidden, 2 * c.hidden, kernel_init=kernel_init, **options)
        self.depthwise = Depthwise(c.hidden, c.kernel, rngs, causal=c.causal, **c.dtypes)
        self.inner_norm: nnx.BatchNorm | nnx.LayerNorm
        if c.norm == "batch":
            self.inner_norm = nnx.BatchNorm(c.hidden, momentum=0.9, **options)
        else:
            self.inner_norm = nnx.LayerNorm(c.hidden, **options)
        self.project = nnx.Linear(c.hidden, c.hidden, kernel_init=c.branch_init, **options)

    def __call__(self, x: jax.Array, heard: jax.Array | None) -> jax.Array:
        """[b, s, d] -> [b, s, d]. What is not heard is silence to the convolution, and no part of batch norm's mean."""
        x = jax.nn.glu(self.expand(self.norm(x)), axis=-1)
        mask = None if heard is None else heard[..., None]
        x = self.depthwise(x if mask is None else jnp.where(mask, x, 0.0))
        x = self.inner_norm(x, mask=mask) if isinstance(self.inner_norm, nnx.BatchNorm) else self.inner_norm(x)
        return self.project(jax.nn.swish(x))


class Layer(nnx.Module):
    """The macaron: half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, c: SpeechConfig, rngs: nnx.Rngs):
        self.feed1 = FeedForward(c, rngs)
        self.attention_norm = nnx.LayerNorm(c.hidden, rngs=rngs, **c.dtypes)
        self.attention = Attention(c.hidden, c.heads, rngs, relative=c.relative, out_init=c.branch_init, **c.dtypes)
        self.convolution = Convolution(c, rngs)
        self.feed2 = FeedForward(c, rngs)
        self.norm = nnx.LayerNorm(c.hidden, rngs=rngs, **c.dtypes)

    def __call__(
        self, x: jax.Array, visible: jax.Array | None, heard: jax.Array | None, distances: jax.Array | None
    ) -> jax.Array:
        """[b, s, d] -> [b, s, d]; `visible` is attention's mask, `heard` [b, s] the convolution's."""
        x = x + 0.5 * self.feed1(x)
        y = self.attention_norm(x)
        x = x + self.attention(y, y, visible, distances)
        x = x + self.convolution(x, heard)
        return self.norm(x + 0.5 * self.feed2(x))


def init_layers(c: SpeechConfig, layers: int, rngs: nnx.Rngs) -> list[Layer]:
    """Layers with parameters of their own; one is traced and compiled for all, so that deep models are built fast."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> Layer:
        return Layer(c, rngs)

    structure, state = nnx.split(stacked(rngs))
    return [nnx.merge(structure, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(layers)]


class Subsampling(nnx.Module):
    """Two 3x3 convolutions of stride 2 that read no feature after their own frame's, and a projection."""

    def __init__(self, c: SpeechConfig, rngs: nnx.Rngs):
        options: dict[str, Any] = {"strides": 2, "padding": ((1, 0), (1, 1)), "rngs": rngs, **c.dtypes}
        self.compute_dtype = c.compute_dtype
        self.conv1 = nnx.Conv(1, c.channels, (3, 3), **options)
        self.conv2 = nnx.Conv(c.channels, c.channels, (3, 3), **options)
        width = c.features // SUBSAMPLING * c.channels
        self.project = nnx.Linear(width, c.hidden, kernel_init=kernel_init, rngs=rngs, **c.dtypes)

    def __call__(self, features: jax.Array) -> jax.Array:
        """[b, 4 s, f] -> [b, s, d]."""
        x = features.astype(self.compute_dtype)[..., None]
        x = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
        return self.project(x.reshape(*x.shape[:2], -1))


class Stack(nnx.Module):
    """Conformer layers: [b, s, d] -> [b, s, d]."""

    def __init__(self, c: SpeechConfig, layers: int, rngs: nnx.Rngs):
        self.config = c
        self.layers = nnx.List(init_layers(c, layers, rngs))

    def __call__(self, x: jax.Array, heard: jax.Array | None = None) -> jax.Array:
        """Frames and which of them belong to the utterance (None: all) -> frames in their context."""
        c, frames = self.config, x.shape[1]
        visible = visible_frames(c, frames, heard)
        distances = None
        if c.relative:
            distances = embedded_distances(frames, c.hidden, c.param_dtype).astype(c.compute_dtype)
        for layer in self.layers:
            x = layer(x, visible, heard, distances)
        return x


class Encoder(nnx.Module):
    """Features [b, 4 s, f] -> frames in their context [b, s, d]."""

    def __init__(self, c: SpeechConfig, rngs: nnx.Rngs):
        self.subsampling = Subsampling(c, rngs)
        self.stack = Stack(c, c.layers, rngs)

    def __call__(self, features: jax.Array, heard: jax.Array | None = None) -> jax.Array:
        """[b, 4 s, f] -> [b, s, d]."""
        return self.stack(self.subsampling(features), heard)
