"""Llama: rotary positions, grouped-query attention, SwiGLU, RMSNorm, unrolled or scanned over its layers; Flax NNX.

The output layer has a matrix of its own, but for the small models (1B and 3B, Llama 3.2), where it is the embedding's.

Parameters: L (2 d^2 + 2 d^2 kv / heads + 3 d F) + 2 V d, V d if tied, plus norms.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from autopar.models.data.tokens import token_batches
from autopar.models.layers.rotary import rotary
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """Sizes: `heads` query heads share `kv_heads` key and value heads; `ffn` is the feed-forward width.

    `tied` uses the embedding as the output layer too.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 192
    sequence: int = 32
    vocab: int = 256
    rope_theta: float = 10_000.0
    tied: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({2 * self.heads}): "
                "rotary positions turn pairs of numbers in each head"
            )


def _large(
    hidden: int, layers: int, heads: int, ffn: int, batch_size: int, learning_rate: float, tied: bool = False
) -> LlamaConfig:
    return LlamaConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        ffn=ffn,
        sequence=8192,
        vocab=128_256,
        rope_theta=500_000.0,
        tied=tied,
        batch_size=batch_size,
        dtype="bfloat16",
        learning_rate=learning_rate,
    )


PRESETS = {
    "toy": LlamaConfig(),
    "1b": _large(2048, 16, 32, 8192, 128, 3e-4, tied=True),
    "3b": _large(3072, 28, 24, 8192, 128, 3e-4, tied=True),
    "8b": _large(4096, 32, 32, 14_336, 128, 3e-4),
    "70b": _large(8192, 80, 64, 28_672, 1024, 1.5e-4),
    "405b": _large(16_384, 126, 128, 53_248, 2048, 8e-5),
}

kernel_init = nnx.initializers.normal(0.02)


class Attention(nnx.Module):
    """Causal attention in which each key and value head serves `heads / kv_heads` query heads."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
        self.theta = c.rope_theta
        head = c.hidden // c.heads
        options: dict[str, Any] = {
            "use_bias": False,
            "dtype": c.compute_dtype,
            "param_dtype": c.param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        self.query = nnx.LinearGeneral(c.hidden, (c.kv_heads, c.heads // c.kv_heads, head), **options)
        self.key = nnx.LinearGeneral(c.hidden, (c.kv_heads, head), **options)
        self.value = nnx.LinearGeneral(c.hidden, (c.kv_heads, head), **options)
        self.out = nnx.LinearGeneral((c.kv_heads, c.heads // c.kv_heads, head), c.hidden, axis=(-3, -2, -1), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]. In einsums n is the key head, g the query head within it."""
        q, k, v = rotary(self.query(x), self.theta), rotary(self.key(x), self.theta), self.value(x)
        scores = jnp.einsum("bsngk,btnk->bngst", q, k) * q.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        scores = jnp.where(causal, scores.astype(jnp.promote_types(x.dtype, jnp.float32)), -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        return self.out(jnp.einsum("bngst,btnk->bsngk", weights, v))


def rms_norm(c: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """A norm in the parameters' dtype: its scale's gradient, a sum over all tokens, is not rounded on the way."""
    return nnx.RMSNorm(c.hidden, epsilon=1e-5, dtype=c.param_dtype, param_dtype=c.param_dtype, rngs=rngs)


class Layer(nnx.Module):
    """Attention and SwiGLU, each on a normalised copy of the residual stream."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        options: dict[str, Any] = {"use_bias": False, "kernel_init": kernel_init, **dtypes}
        self.norm1 = rms_norm(c, rngs)
        self.attention = Attention(c, rngs)
        self.norm2 = rms_norm(c, rngs)
        self.gate = nnx.Linear(c.hidden, c.ffn, **options)
        self.up = nnx.Linear(c.hidden, c.ffn, **options)
        self.down = nnx.Linear(c.ffn, c.hidden, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        x = x + self.attention(self.norm1(x).astype(x.dtype))
        y = self.norm2(x).astype(x.dtype)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


# Under its own jit a layer's initialisation is traced once for all layers: deep models are built in no time.
init_layer = nnx.jit(Layer, static_argnums=0)


def stacked_layers(c: LlamaConfig, rngs: nnx.Rngs) -> Layer:
    """All layers as one, whose parameters have the layers as their first dim."""

    @nnx.split_rngs(splits=c.layers)
    @nnx.vmap
    def init(rngs: nnx.Rngs) -> Layer:
        return Layer(c, rngs)

    return init(rngs)


def unrolled(layers: nnx.List[Layer], x: jax.Array) -> jax.Array:
    """Layers one after the other: [b, s, d] -> [b, s, d]."""
    for layer in layers:
        x = layer(x)
    return x


def scanned(layers: Layer, x: jax.Array) -> jax.Array:
    """One scan over layers stacked along a leading dim, keeping only each layer's input for the backward pass."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    @nnx.remat
    def run(x: jax.Array, layer: Layer) -> jax.Array:
        return layer(x)

    return run(x, layers)


class Llama(nnx.Module):
    """Token ids [b, s] -> logits [b, s, v], at least in float32."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs, *, stack: bool):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.tied, self.stack = c.tied, stack
        self.embed = nnx.Embed(c.vocab, c.hidden, embedding_init=kernel_init, **dtypes)
        self.layers: Any = (
            stacked_layers(c, rngs) if stack else nnx.List([init_layer(c, rngs) for _ in range(c.layers)])
        )
        self.norm = rms_norm(c, rngs)
        if not c.tied:
            self.head = nnx.Linear(c.hidden, c.vocab, use_bias=False, kernel_init=kernel_init, **dtypes)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[b, s] -> [b, s, v]."""
        run_layers = scanned if self.stack else unrolled
        x = run_layers(self.layers, self.embed(tokens))
        x = self.norm(x).astype(x.dtype)
        logits = self.embed.attend(x) if self.tied else self.head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def make(family: Family, preset: str, c: LlamaConfig, *, stack: bool) -> Recipe:
    """Builds the recipe. The module is split into its structure, kept here, and its parameters, in the state."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: Llama(c, nnx.Rngs(0), stack=stack)))

    def init(key: jax.Array) -> tuple[Pytree, None]:
        return nnx.state(Llama(c, nnx.Rngs(key), stack=stack), nnx.Param), None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        logits = nnx.merge(structure, params)(batch["tokens"])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return nll.mean(), ({}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


SOURCE = "Touvron et al. 2023; sizes from Grattafiori et al. 2024 (Llama 3) and Llama 3.2"

UNROLLED = Family(
    name="llama",
    summary="decoder with rotary positions, grouped-query attention, SwiGLU and RMSNorm; Flax NNX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=False),
)
SCANNED = Family(
    name="llama-scan",
    summary="the same decoder as a scan over stacked, checkpointed layers; Flax NNX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=True),
)
