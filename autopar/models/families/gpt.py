"""GPT: a pre-LN decoder with tied embeddings, in plain JAX, unrolled or scanned over its layers.

Parameters: 12 L d^2 (attention 4 d^2, feed-forward 8 d^2) + V d (embedding, also the head) + S d (positions),
plus biases and norms, which are below 0.1%. With heads of size k and a feed-forward factor F a layer has
4 d h k + 2 F d^2; untied, the head has V d of its own; positions that are sines are computed. The paper rounds: its 15
billion are 15.4, of which the layers have 12 x 48 x 5120^2 = 15.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Config):
    """Sizes. `dropout` is the rate after the embedding and each block; at 0 the state carries no random key.

    `head` is the size of one attention head (None: hidden / heads). `tied` uses the embedding as the output layer too.
    `sines` adds sinusoids for positions in place of a learned table.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    sequence: int = 32
    vocab: int = 256
    head: int | None = None
    ffn_factor: int = 4
    tied: bool = True
    sines: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.head is None and self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.sines and self.hidden % 2:
            raise ValueError(f"hidden ({self.hidden}) must be even: positions are pairs of a sine and a cosine")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def _large(hidden: int, layers: int, heads: int) -> GPTConfig:
    # Models of a billion parameters and more are trained for one epoch, without dropout.
    return GPTConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        sequence=1024,
        vocab=51200,
        dropout=0.0,
        batch_size=1024,
        dtype="bfloat16",
        learning_rate=1e-4,
    )


PRESETS = {
    "toy": GPTConfig(),
    "350m": _large(1024, 24, 16),
    "1.3b": _large(2048, 24, 32),
    "2.6b": _large(2560, 32, 32),
    "6.7b": _large(4096, 32, 32),
    "15b": _large(5120, 48, 40),
    "39b": _large(8192, 48, 64),
}


def init_layer(key: jax.Array, c: GPTConfig) -> L.Params:
    """One decoder layer. Projections into the residual stream shrink with depth, as in GPT-2."""
    k1, k2 = jax.random.split(key)
    out_std = 0.02 / (2 * c.layers) ** 0.5
    return {
        "ln1": L.layer_norm_init(c.hidden, c.param_dtype),
        "attn": L.attention_init(k1, c.hidden, c.heads, c.param_dtype, out_std, c.head),
        "ln2": L.layer_norm_init(c.hidden, c.param_dtype),
        "mlp": L.mlp_init(k2, c.hidden, c.ffn_factor * c.hidden, c.param_dtype, out_std),
    }


def decoder_layer(p: L.Params, x: jax.Array, key: jax.Array | None, rate: float) -> jax.Array:
    """Attention and feed-forward, each added to the residual stream: [b, s, d] -> [b, s, d]."""
    k1, k2 = (None, None) if key is None else jax.random.split(key)
    x = x + L.dropout(k1, L.causal_attention(p["attn"], L.layer_norm(p["ln1"], x)), rate)
    return x + L.dropout(k2, L.mlp(p["mlp"], L.layer_norm(p["ln2"], x)), rate)


def unrolled(layers: Pytree, x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Layers one after the other; `layers` is a list."""
    for i, layer in enumerate(layers):
        x = decoder_layer(layer, x, None if keys is None else keys[i], rate)
    return x


def scanned(layers: Pytree, x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """One scan over layers stacked along a leading dim, keeping only each layer's input for the backward pass."""

    @jax.checkpoint
    def body(x: jax.Array, layer_and_key: tuple[Pytree, jax.Array | None]) -> tuple[jax.Array, None]:
        layer, key = layer_and_key
        return decoder_layer(layer, x, key, rate), None

    return jax.lax.scan(body, x, (layers, keys))[0]


def embed(params: Pytree, tokens: jax.Array, c: GPTConfig) -> jax.Array:
    """Rows of the table plus what tells their positions apart: ids [b, s] -> [b, s, d].

    Next to sinusoids, which are of order one, rows are scaled up (Vaswani et al. 2017, section 3.4).
    """
    x = params["wte"][tokens]
    if c.sines:
        return x * c.hidden**0.5 + L.sinusoids(jnp.arange(c.sequence, dtype=c.param_dtype), c.hidden)
    return x + params["wpe"]


def make(
    family: Family,
    preset: str,
    c: GPTConfig,
    *,
    stack: bool,
    run_layers: Callable[[Pytree, jax.Array, jax.Array | None, float], jax.Array],
) -> Recipe:
    """Builds the recipe, with layers in a list, or stacked and scanned."""

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_tokens, k_positions, k_layers = jax.random.split(key, 3)
        keys = jax.random.split(k_layers, c.layers)
        # Under its own jit a layer's initialisation is traced once for all layers.
        one_layer = jax.jit(partial(init_layer, c=c))
        params = {
            "wte": L.normal(k_tokens, (c.vocab, c.hidden), c.param_dtype),
            "layers": jax.vmap(one_layer)(keys) if stack else [one_layer(k) for k in keys],
            "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        }
        if not c.sines:
            params["wpe"] = L.normal(k_positions, (c.sequence, c.hidden), c.param_dtype)
        if not c.tied:
            params["head"] = L.normal(jax.random.fold_in(k_tokens, 1), (c.vocab, c.hidden), c.param_dtype)
        return params, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        k_embed, keys = None, None
        if key is not None:
            k_embed, k_layers = jax.random.split(key)
            keys = jax.random.split(k_layers, c.layers)
        x = embed(params, batch["tokens"], c).astype(c.compute_dtype)
        x = L.dropout(k_embed, x, c.dropout)
        x = run_layers(params["layers"], x, keys, c.dropout)
        x = L.layer_norm(params["ln_f"], x)
        head = params["wte"] if c.tied else params["head"]
        logits = jnp.einsum("bsd,vd->bsv", x, head.astype(x.dtype))
        return L.cross_entropy(logits, batch["targets"]), ({}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        dropout=c.dropout > 0,
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


SOURCE = "Radford et al. 2019 (GPT-2); sizes from Brown et al. 2020 and Zheng et al. 2022 (Alpa)"

UNROLLED = Family(
    name="gpt",
    summary="pre-LN causal decoder, tied embeddings, layers unrolled; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=False, run_layers=unrolled),
)
SCANNED = Family(
    name="gpt-scan",
    summary="the same decoder as a lax.scan over stacked, checkpointed layers; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=True, run_layers=scanned),
)
