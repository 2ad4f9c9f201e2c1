"""Conformer: a speech encoder of feed-forward, relative attention, convolution and feed-forward again; Flax NNX.

Features [b, 4 s, f] are subsampled by two stride-2 convolutions to s frames, and each frame is classified: a
framewise cross entropy, as when training on an alignment.

Parameters: 24 L d^2 (two feed-forwards 16 d^2, attention 4 d^2 and its positions d^2, convolution module 3 d^2)
+ 9 n^2 + (f / 4) n d (subsampling through n channels) + V d (output), plus biases, norms and depthwise kernels
(K d per layer). Without relative positions the attention has d^2 less. The published counts of S and L include an
LSTM transducer decoder, which is no part of this model.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from autopar.models.layers import plain as L
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe, unknown

NORMS = ("batch", "layer")


@dataclass(frozen=True, kw_only=True)
class ConformerConfig(Config):
    """Sizes: `frames` after subsampling, four times as many before; `norm` is the convolution module's.

    Without `relative`, attention knows no positions but through the convolutions: XL and XXL are so.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kernel: int = 7
    features: int = 16
    frames: int = 32
    channels: int = 16
    classes: int = 64
    norm: str = "layer"
    relative: bool = True

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(unknown("norm", self.norm, NORMS))
        if self.hidden % self.heads or self.features % 4:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}), and features "
                f"({self.features}) of 4, by which they are subsampled"
            )


def _large(
    hidden: int, layers: int, heads: int, kernel: int, channels: int, *, norm: str, relative: bool
) -> ConformerConfig:
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
        classes=1024,
        batch_size=256,
        dtype="bfloat16",
    )


PRESETS = {
    "toy": ConformerConfig(),
    "toy-batchnorm": ConformerConfig(norm="batch"),
    "s": _large(144, 16, 4, 32, 144, norm="batch", relative=True),
    "l": _large(512, 17, 8, 32, 512, norm="batch", relative=True),
    "xl": _large(1024, 24, 8, 5, 256, norm="layer", relative=False),
    "1b": _large(1024, 42, 8, 5, 256, norm="layer", relative=False),
}

kernel_init = nnx.initializers.xavier_uniform()


def relative_shift(scores: jax.Array) -> jax.Array:
    """Aligns scores by distance with keys: [..., s, 2 s - 1] (distance s - 1 down to -(s - 1)) -> [..., s, s].

    Transformer-XL's (Dai et al. 2019): padding each row by one and reading the numbers in rows shorter by one
    moves each row one further to the left.
    """
    *outer, s, n = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * len(outer) + [(0, 0), (1, 0)])
    return padded.reshape(*outer, n + 1, s)[..., 1:, :].reshape(*outer, s, n)[..., :s]


class Attention(nnx.Module):
    """Self-attention whose scores add one of content and, if relative, one of distance."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        self.relative = c.relative
        shape = (c.heads, c.hidden // c.heads)
        options: dict[str, Any] = {
            "dtype": c.compute_dtype,
            "param_dtype": c.param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        self.query = nnx.LinearGeneral(c.hidden, shape, **options)
        self.key = nnx.LinearGeneral(c.hidden, shape, use_bias=False, **options)
        self.value = nnx.LinearGeneral(c.hidden, shape, **options)
        self.out = nnx.LinearGeneral(shape, c.hidden, axis=(-2, -1), **options)
        if c.relative:
            self.position = nnx.LinearGeneral(c.hidden, shape, use_bias=False, **options)
            # The query's bias serves the content scores; for distances it is offset by one more.
            self.distance_bias = nnx.Param(jnp.zeros(shape, c.param_dtype))

    def __call__(self, x: jax.Array, distances: jax.Array) -> jax.Array:
        """[b, s, d] and the embedded distances [2 s - 1, d] -> [b, s, d]."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        scores = jnp.einsum("bshk,bthk->bhst", q, k)
        if self.relative:
            q = q + self.distance_bias[...].astype(q.dtype)
            scores = scores + relative_shift(jnp.einsum("bshk,nhk->bhsn", q, self.position(distances)))
        scores = (scores * q.shape[-1] ** -0.5).astype(jnp.promote_types(x.dtype, jnp.float32))
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        return self.out(jnp.einsum("bhst,bthk->bshk", weights, v))


class FeedForward(nnx.Module):
    """Norm, dense to 4 d, swish, dense."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.norm = nnx.LayerNorm(c.hidden, **dtypes)
        self.up = nnx.Linear(c.hidden, 4 * c.hidden, kernel_init=kernel_init, **dtypes)
        self.down = nnx.Linear(4 * c.hidden, c.hidden, kernel_init=kernel_init, **dtypes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        return self.down(jax.nn.swish(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """Norm, pointwise convolution with a gated linear unit, depthwise convolution, norm, swish, pointwise."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.norm = nnx.LayerNorm(c.hidden, **dtypes)
        self.expand = nnx.Linear(c.hidden, 2 * c.hidden, kernel_init=kernel_init, **dtypes)
        self.depthwise = nnx.Conv(
            c.hidden, c.hidden, (c.kernel,), feature_group_count=c.hidden, use_bias=False, **dtypes
        )
        inner_norm = nnx.BatchNorm if c.norm == "batch" else nnx.LayerNorm
        self.inner_norm = inner_norm(c.hidden, **dtypes)
        self.project = nnx.Linear(c.hidden, c.hidden, kernel_init=kernel_init, **dtypes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        x = jax.nn.glu(self.expand(self.norm(x)), axis=-1)
        return self.project(jax.nn.swish(self.inner_norm(self.depthwise(x))))


class Layer(nnx.Module):
    """The macaron: half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.feed1 = FeedForward(c, rngs)
        self.attention_norm = nnx.LayerNorm(c.hidden, **dtypes)
        self.attention = Attention(c, rngs)
        self.convolution = Convolution(c, rngs)
        self.feed2 = FeedForward(c, rngs)
        self.norm = nnx.LayerNorm(c.hidden, **dtypes)

    def __call__(self, x: jax.Array, distances: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        x = x + 0.5 * self.feed1(x)
        x = x + self.attention(self.attention_norm(x), distances)
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.feed2(x))


# Under its own jit a layer's initialisation is traced once for all layers: deep models are built in no time.
init_layer = nnx.jit(Layer, static_argnums=0)


class Conformer(nnx.Module):
    """Features [b, 4 s, f] -> logits [b, s, classes], at least in float32."""

    def __init__(self, c: ConformerConfig, rngs: nnx.Rngs):
        self.hidden = c.hidden
        self.compute_dtype, self.param_dtype = c.compute_dtype, c.param_dtype
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.subsample1 = nnx.Conv(1, c.channels, (3, 3), strides=2, **dtypes)
        self.subsample2 = nnx.Conv(c.channels, c.channels, (3, 3), strides=2, **dtypes)
        self.project = nnx.Linear(c.features // 4 * c.channels, c.hidden, kernel_init=kernel_init, **dtypes)
        self.layers = nnx.List([init_layer(c, rngs) for _ in range(c.layers)])
        self.head = nnx.Linear(c.hidden, c.classes, kernel_init=kernel_init, **dtypes)

    def __call__(self, features: jax.Array) -> jax.Array:
        """[b, 4 s, f] -> [b, s, classes]."""
        x = features.astype(self.compute_dtype)[..., None]
        x = jax.nn.relu(self.subsample2(jax.nn.relu(self.subsample1(x))))
        x = self.project(x.reshape(*x.shape[:2], -1))
        distances = jnp.arange(x.shape[1] - 1, -x.shape[1], -1, dtype=self.param_dtype)
        distances = L.sinusoids(distances, self.hidden).astype(self.compute_dtype)
        for layer in self.layers:
            x = layer(x, distances)
        return self.head(x).astype(self.param_dtype)


def make(family: Family, preset: str, c: ConformerConfig) -> Recipe:
    """Builds the recipe; a frame's features are noise around one random pattern per class."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: Conformer(c, nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        params, stats = nnx.state(Conformer(c, nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        # Flax keeps running statistics in float32, but returns them in the dtype it computed in.
        return params, jax.tree.map(lambda s: s.astype(c.param_dtype), stats)

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        model = nnx.merge(structure, params, stats, copy=True)
        logits = model(batch["features"])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return nll.mean(), ({}, nnx.state(model, nnx.BatchStat))

    def batch(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, c.classes, (c.batch_size, c.frames), dtype=np.int32)
        pattern = np.random.default_rng(0).standard_normal((c.classes, c.features), dtype=np.float32)
        features = np.repeat(pattern[labels], 4, axis=1)
        features += rng.standard_normal(features.shape, dtype=np.float32)
        return {"features": features.astype(c.param_dtype), "labels": labels}

    spec = {
        "features": jax.ShapeDtypeStruct((c.batch_size, 4 * c.frames, c.features), c.param_dtype),
        "labels": jax.ShapeDtypeStruct((c.batch_size, c.frames), np.int32),
    }
    return make_recipe(family, preset, c, init=init, loss=loss, batch=batch, batch_spec=spec)


FAMILY = Family(
    name="conformer",
    summary="speech encoder: macaron feed-forwards, relative attention, gated depthwise convolution; Flax NNX",
    source="Gulati et al. 2020; XL and 1b (XXL) from Zhang et al. 2020 (Pushing the Limits)",
    presets=PRESETS,
    make=make,
)
