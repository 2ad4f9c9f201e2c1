"""PaLM: attention and feed-forward side by side, one key and value head for all queries, no biases; plain JAX.

A layer adds both of its halves, on one normalised copy of the residual stream, at once: y = x + attention(norm(x)) +
swiglu(norm(x)). Positions are rotary; input and output share one embedding, whose logits are divided by sqrt(d).

Parameters: L (2 d h k + 2 d k + 3 d F) + V d, F = 4 d the feed-forward width and k the head size, plus L + 1 scales.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.rotary import rotary
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class PaLMConfig(Config):
    """Sizes: `heads` queries of size `head` each; `z_loss` is the weight of log^2 of the softmax's normaliser."""

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    head: int = 8
    ffn_factor: int = 4
    sequence: int = 32
    vocab: int = 256
    rope_theta: float = 10_000.0
    z_loss: float = 1e-4

    def __post_init__(self) -> None:
        if self.head % 2:
            raise ValueError(f"head ({self.head}) must be even: rotary positions turn pairs of numbers in each head")


def _large(hidden: int, layers: int, heads: int, batch_size: int) -> PaLMConfig:
    return PaLMConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        head=256,
        sequence=2048,
        vocab=256_000,
        batch_size=batch_size,
        dtype="bfloat16",
        optimizer="adafactor",
        schedule="rsqrt",
        learning_rate=1e-2,
        warmup_steps=10_000,
    )


PRESETS = {
    "toy": PaLMConfig(),
    "8b": _large(4096, 32, 16, 512),
    "62b": _large(8192, 64, 32, 1024),
    "540b": _large(18_432, 118, 48, 2048),
}


def fan_in(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype, inputs: int) -> jax.Array:
    """Gaussian weights by which sums over `inputs` keep their variance."""
    return L.normal(key, shape, dtype, inputs**-0.5)


def init_layer(key: jax.Array, c: PaLMConfig) -> L.Params:
    """One layer's weights."""
    keys, d, f, dtype = jax.random.split(key, 7), c.hidden, c.ffn_factor * c.hidden, c.param_dtype
    return {
        "norm": jnp.ones((d,), dtype),
        "wq": fan_in(keys[0], (d, c.heads, c.head), dtype, d),
        "wk": fan_in(keys[1], (d, c.head), dtype, d),
        "wv": fan_in(keys[2], (d, c.head), dtype, d),
        "wo": fan_in(keys[3], (c.heads, c.head, d), dtype, c.heads * c.head),
        "mlp": {
            "gate": fan_in(keys[4], (d, f), dtype, d),
            "up": fan_in(keys[5], (d, f), dtype, d),
            "down": fan_in(keys[6], (f, d), dtype, f),
        },
    }


def norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Layer normalisation without a bias: [..., d] -> [..., d], computed in the dtype of `scale`."""
    return (jax.nn.standardize(x.astype(scale.dtype), epsilon=1e-5) * scale).astype(x.dtype)


def attention(p: L.Params, x: jax.Array, theta: float) -> jax.Array:
    """Causal attention of `heads` queries to one key and one value (Shazeer 2019): [b, s, d] -> [b, s, d]."""
    p = {name: p[name].astype(x.dtype) for name in ("wq", "wk", "wv", "wo")}
    q = rotary(jnp.einsum("bsd,dhk->bshk", x, p["wq"]), theta)
    k = rotary(jnp.einsum("btd,dk->btk", x, p["wk"]), theta)
    v = jnp.einsum("btd,dk->btk", x, p["wv"])
    scores = jnp.einsum("bshk,btk->bhst", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(L.causal(x.shape[1]), scores.astype(jnp.promote_types(x.dtype, jnp.float32)), L.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    return jnp.einsum("bshk,hkd->bsd", jnp.einsum("bhst,btk->bshk", weights, v), p["wo"])


def layer(p: L.Params, x: jax.Array, theta: float) -> jax.Array:
    """Attention and SwiGLU in parallel: [b, s, d] -> [b, s, d]."""
    y = norm(p["norm"], x)
    return x + attention(p, y, theta) + L.gated_mlp(p["mlp"], y)


def scanned(layers: Pytree, x: jax.Array, theta: float) -> jax.Array:
    """One scan over stacked layers, keeping only each layer's input for the backward pass."""

    @jax.checkpoint
    def body(x: jax.Array, p: L.Params) -> tuple[jax.Array, None]:
        return layer(p, x, theta), None

    return jax.lax.scan(body, x, layers)[0]


def make(family: Family, preset: str, c: PaLMConfig, *, stack: bool) -> Recipe:
    """Builds the recipe, with layers in a list, or stacked and scanned."""

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_embed, k_layers = jax.random.split(key)
        keys = jax.random.split(k_layers, c.layers)
        # Under its own jit a layer's initialisation is traced once for all layers.
        one_layer = jax.jit(partial(init_layer, c=c))
        return {
            "embed": L.normal(k_embed, (c.vocab, c.hidden), c.param_dtype, 1.0),
            "layers": jax.vmap(one_layer)(keys) if stack else [one_layer(k) for k in keys],
            "norm": jnp.ones((c.hidden,), c.param_dtype),
        }, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = params["embed"][batch["tokens"]].astype(c.compute_dtype)
        if stack:
            x = scanned(params["layers"], x, c.rope_theta)
        else:
            for p in params["layers"]:
                x = layer(p, x, c.rope_theta)
        x = norm(params["norm"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["embed"].astype(x.dtype)).astype(c.param_dtype)
        logits = logits * c.hidden**-0.5
        nll = L.cross_entropy(logits, batch["targets"])
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        return nll + c.z_loss * jnp.square(normaliser).mean(), ({"nll": nll}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


SOURCE = "Chowdhery et al. 2022"

UNROLLED = Family(
    name="palm",
    summary="decoder with parallel halves, multi-query attention and SwiGLU, layers unrolled; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=False),
)
SCANNED = Family(
    name="palm-scan",
    summary="the same decoder as a lax.scan over stacked, checkpointed layers; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=True),
)
