"""Llama: rotary positions, grouped-query attention, SwiGLU, RMSNorm, an output layer of its own; Flax NNX.

Parameters: L (2 d^2 + 2 d^2 kv / heads + 3 d F) + 2 V d, plus norms.
"""

from dataclasses import dataclass
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
    """Sizes: `heads` query heads share `kv_heads` key and value heads; `ffn` is the feed-forward width."""

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 192
    sequence: int = 32
    vocab: int = 256
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({2 * self.heads}): "
                "rotary positions turn pairs of numbers in each head"
            )


def _large(hidden: int, layers: int, heads: int, ffn: int, batch_size: int, learning_rate: float) -> LlamaConfig:
    return LlamaConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        ffn=ffn,
        sequence=8192,
        vocab=128_256,
        rope_theta=500_000.0,
        batch_size=batch_size,
        dtype="bfloat16",
        learning_rate=learning_rate,
    )


PRESETS = {
    "toy": LlamaConfig(),
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


class Layer(nnx.Module):
    """Attention and SwiGLU, each on a normalised copy of the residual stream."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        options: dict[str, Any] = {"use_bias": False, "kernel_init": kernel_init, **dtypes}
        self.norm1 = nnx.RMSNorm(c.hidden, epsilon=1e-5, **dtypes)
        self.attention = Attention(c, rngs)
        self.norm2 = nnx.RMSNorm(c.hidden, epsilon=1e-5, **dtypes)
        self.gate = nnx.Linear(c.hidden, c.ffn, **options)
        self.up = nnx.Linear(c.hidden, c.ffn, **options)
        self.down = nnx.Linear(c.ffn, c.hidden, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


# Under its own jit a layer's initialisation is traced once for all layers: deep models are built in no time.
init_layer = nnx.jit(Layer, static_argnums=0)


class Llama(nnx.Module):
    """Token ids [b, s] -> logits [b, s, v], at least in float32."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.embed = nnx.Embed(c.vocab, c.hidden, embedding_init=kernel_init, **dtypes)
        self.layers = nnx.List([init_layer(c, rngs) for _ in range(c.layers)])
        self.norm = nnx.RMSNorm(c.hidden, epsilon=1e-5, **dtypes)
        self.head = nnx.Linear(c.hidden, c.vocab, use_bias=False, kernel_init=kernel_init, **dtypes)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[b, s] -> [b, s, v]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def make(family: Family, preset: str, c: LlamaConfig) -> Recipe:
    """Builds the recipe. The module is split into its structure, kept here, and its parameters, in the state."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: Llama(c, nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[Pytree, None]:
        return nnx.state(Llama(c, nnx.Rngs(key)), nnx.Param), None

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


FAMILY = Family(
    name="llama",
    summary="decoder with rotary positions, grouped-query attention, SwiGLU and RMSNorm; Flax NNX",
    source="Touvron et al. 2023; sizes from Grattafiori et al. 2024 (Llama 3)",
    presets=PRESETS,
    make=make,
)
