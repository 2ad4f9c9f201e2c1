"""BERT: a post-LN bidirectional encoder with a masked-language-model loss, in Flax Linen.

Parameters: 12 L d^2 + (V + S) d (embeddings; the vocabulary's is also the output layer) + d^2 (the transform
before it), plus biases and norms. There is no next-sentence task, so no segment embedding and no pooler.
"""

from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """Sizes. `masked_fraction` of each sequence's tokens are hidden and predicted."""

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    sequence: int = 32
    vocab: int = 256
    ffn_factor: int = 4
    dropout: float = 0.1
    masked_fraction: float = 0.15

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")

    @property
    def masked(self) -> int:
        """Predictions per sequence: the same for each, so that the loss is a plain mean over examples."""
        return max(1, round(self.masked_fraction * self.sequence))


PRESETS = {
    "toy": BertConfig(),
    "base": BertConfig(hidden=768, layers=12, heads=12, sequence=512, vocab=30522, batch_size=256, dtype="bfloat16"),
    "large": BertConfig(hidden=1024, layers=24, heads=16, sequence=512, vocab=30522, batch_size=256, dtype="bfloat16"),
}

kernel_init = nn.initializers.normal(0.02)


class SelfAttention(nn.Module):
    """Every position attends to every other. Keys have no bias: softmax is blind to it."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        c = self.config
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "kernel_init": kernel_init}
        heads = (c.heads, c.hidden // c.heads)
        q = nn.DenseGeneral(heads, name="query", **dtypes)(x)
        k = nn.DenseGeneral(heads, name="key", use_bias=False, **dtypes)(x)
        v = nn.DenseGeneral(heads, name="value", **dtypes)(x)
        mixed = nn.dot_product_attention(q, k, v, deterministic=True, dtype=c.compute_dtype)
        return nn.DenseGeneral(c.hidden, axis=(-2, -1), name="out", **dtypes)(mixed)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each normalised after its residual sum."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        c = self.config
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
        drop = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))
        x = nn.LayerNorm(**dtypes)(x + drop(SelfAttention(c)(x)))
        y = nn.gelu(nn.Dense(c.ffn_factor * c.hidden, kernel_init=kernel_init, **dtypes)(x))
        y = nn.Dense(c.hidden, kernel_init=kernel_init, **dtypes)(y)
        return nn.LayerNorm(**dtypes)(x + drop(y))


class Bert(nn.Module):
    """Token ids [b, s] -> logits [b, s, v], at least in float32."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[b, s] -> [b, s, v]."""
        c = self.config
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
        embed = nn.Embed(c.vocab, c.hidden, embedding_init=kernel_init, **dtypes)
        positions = self.param("positions", kernel_init, (c.sequence, c.hidden), c.param_dtype)
        x = nn.LayerNorm(**dtypes)(embed(tokens) + positions.astype(c.compute_dtype))
        x = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))(x)
        for _ in range(c.layers):
            x = EncoderLayer(c)(x)
        x = nn.gelu(nn.Dense(c.hidden, kernel_init=kernel_init, **dtypes)(x))
        x = nn.LayerNorm(**dtypes)(x)
        bias = self.param("output_bias", nn.initializers.zeros, (c.vocab,), c.param_dtype)
        return embed.attend(x).astype(c.param_dtype) + bias


def make(family: Family, preset: str, c: BertConfig) -> Recipe:
    """Builds the recipe. Id 0 is the mask token, ordinary ids are 1 to vocab - 1."""
    model = Bert(c)

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_params, k_dropout = jax.random.split(key)
        tokens = jnp.zeros((1, c.sequence), jnp.int32)
        return model.init({"params": k_params, "dropout": k_dropout}, tokens)["params"], None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        rngs = None if key is None else {"dropout": key}
        logits = cast(jax.Array, model.apply({"params": params}, batch["tokens"], rngs=rngs))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        weights = batch["weights"]
        total = c.batch_size * c.masked
        hits = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(weights.dtype)
        return (nll * weights).sum() / total, ({"accuracy": (hits * weights).sum() / total}, None)

    def batch(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        targets = rng.integers(1, c.vocab, (c.batch_size, c.sequence), dtype=np.int32)
        order = np.argsort(rng.random((c.batch_size, c.sequence)), axis=1)
        hidden = order < c.masked
        return {
            "tokens": np.where(hidden, np.int32(0), targets),
            "targets": targets,
            "weights": hidden.astype(c.param_dtype),
        }

    ids = jax.ShapeDtypeStruct((c.batch_size, c.sequence), np.int32)
    spec = {"tokens": ids, "targets": ids, "weights": jax.ShapeDtypeStruct(ids.shape, c.param_dtype)}
    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        batch=batch,
        batch_spec=spec,
        dropout=c.dropout > 0,
        unit="tokens",
        units_per_example=c.sequence,
    )


FAMILY = Family(
    name="bert",
    summary="post-LN bidirectional encoder, masked tokens predicted; Flax Linen",
    source="Devlin et al. 2018",
    presets=PRESETS,
    make=make,
)
