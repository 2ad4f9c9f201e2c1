"""Layers that the plain-JAX families share. A layer is a function of a dict of arrays and an activation.

Names of dims in comments: b batch, s and t sequence, d hidden, h heads, k head size, f feed-forward, v vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
MASKED = -1e9  # a score that softmax turns into exactly zero


def normal(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype, std: float = 0.02) -> jax.Array:
    """Gaussian initial weights; std 0.02 as in GPT-2."""
    return jax.random.normal(key, shape, dtype) * std


def layer_norm_init(dim: int, dtype: np.dtype) -> Params:
    """Scale one and bias zero."""
    return {"scale": jnp.ones((dim,), dtype), "bias": jnp.zeros((dim,), dtype)}


def layer_norm(p: Params, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Layer normalisation over the last dim, computed in the parameters' dtype, returned in that of `x`."""
    y = x.astype(p["scale"].dtype)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def attention_init(key: jax.Array, hidden: int, heads: int, dtype: np.dtype, out_std: float) -> Params:
    """Projections with the head dim apart. No bias on keys: softmax is blind to it, its gradient is zero."""
    kq, kk, kv, ko = jax.random.split(key, 4)
    head = hidden // heads
    return {
        "wq": normal(kq, (hidden, heads, head), dtype),
        "wk": normal(kk, (hidden, heads, head), dtype),
        "wv": normal(kv, (hidden, heads, head), dtype),
        "bq": jnp.zeros((heads, head), dtype),
        "bv": jnp.zeros((heads, head), dtype),
        "wo": normal(ko, (heads, head, hidden), dtype, out_std),
        "bo": jnp.zeros((hidden,), dtype),
    }


def causal_attention(p: Params, x: jax.Array) -> jax.Array:
    """Multi-head attention of each position to itself and those before it: [b, s, d] -> [b, s, d]."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), p)
    q = jnp.einsum("bsd,dhk->bshk", x, p["wq"]) + p["bq"]
    k = jnp.einsum("bsd,dhk->bshk", x, p["wk"])
    v = jnp.einsum("bsd,dhk->bshk", x, p["wv"]) + p["bv"]
    scores = jnp.einsum("bshk,bthk->bhst", q, k) * q.shape[-1] ** -0.5
    position = jnp.arange(x.shape[1])
    causal = position[:, None] >= position[None, :]
    scores = jnp.where(causal, scores.astype(jnp.promote_types(x.dtype, jnp.float32)), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhst,bthk->bshk", weights, v)
    return jnp.einsum("bshk,hkd->bsd", mixed, p["wo"]) + p["bo"]


def mlp_init(key: jax.Array, hidden: int, ffn: int, dtype: np.dtype, out_std: float) -> Params:
    """Two dense layers with biases."""
    k1, k2 = jax.random.split(key)
    return {
        "w1": normal(k1, (hidden, ffn), dtype),
        "b1": jnp.zeros((ffn,), dtype),
        "w2": normal(k2, (ffn, hidden), dtype, out_std),
        "b2": jnp.zeros((hidden,), dtype),
    }


def mlp(p: Params, x: jax.Array) -> jax.Array:
    """Dense, GELU, dense: [..., d] -> [..., f] -> [..., d]."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), p)
    return jax.nn.gelu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def dropout(key: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes entries with probability `rate` and scales up the others; the identity when `key` is None."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over all positions of -log softmax(logits)[target], at least in float32.

    Args:
        logits: [..., v], any float dtype.
        targets: [...] integers in [0, v).

    Returns:
        A scalar, in nats per position.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return (jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * one_hot, axis=-1)).mean()
