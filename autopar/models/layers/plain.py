"""Layers that the plain-JAX families share. A layer is a function of a dict of arrays and an activation.

Names of dims in comments: b batch, s and t sequence, d hidden, h heads, k head size, f feed-forward, v vocabulary.
"""

from collections.abc import Callable
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


def rms_norm_init(dim: int, dtype: np.dtype) -> Params:
    """Scale one."""
    return {"scale": jnp.ones((dim,), dtype)}


def rms_norm(p: Params, x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Divides by the root of the mean square of the last dim (Zhang & Sennrich 2019); dtypes as in `layer_norm`."""
    y = x.astype(p["scale"].dtype)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * p["scale"]).astype(x.dtype)


def attention_init(
    key: jax.Array, hidden: int, heads: int, dtype: np.dtype, out_std: float, head: int | None = None
) -> Params:
    """Projections with the head dim apart, heads sharing the hidden size evenly unless `head` is given.

    No bias on keys: softmax is blind to it, its gradient is zero.
    """
    kq, kk, kv, ko = jax.random.split(key, 4)
    head = head or hidden // heads
    return {
        "wq": normal(kq, (hidden, heads, head), dtype),
        "wk": normal(kk, (hidden, heads, head), dtype),
        "wv": normal(kv, (hidden, heads, head), dtype),
        "bq": jnp.zeros((heads, head), dtype),
        "bv": jnp.zeros((heads, head), dtype),
        "wo": normal(ko, (heads, head, hidden), dtype, out_std),
        "bo": jnp.zeros((hidden,), dtype),
    }


def attention(
    p: Params, x: jax.Array, memory: jax.Array, visible: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Multi-head attention of each position of `x` to those of `memory`.

    Args:
        p: what `attention_init` returns.
        x: [b, s, d], the positions that ask.
        memory: [b, t, d], the positions that answer: `x` itself, or an encoder's output.
        visible: booleans that broadcast to [b, h, s, t]; each position must see one at least.
        bias: broadcasts to [b, h, s, t] and is added to the scores, as relative positions are.

    Returns:
        [b, s, d].
    """
    p = jax.tree.map(lambda w: w.astype(x.dtype), p)
    q = jnp.einsum("bsd,dhk->bshk", x, p["wq"]) + p["bq"]
    k = jnp.einsum("btd,dhk->bthk", memory, p["wk"])
    v = jnp.einsum("btd,dhk->bthk", memory, p["wv"]) + p["bv"]
    scores = jnp.einsum("bshk,bthk->bhst", q, k) * q.shape[-1] ** -0.5
    scores = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
    scores = jnp.where(visible, scores if bias is None else scores + bias, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhst,bthk->bshk", weights, v)
    return jnp.einsum("bshk,hkd->bsd", mixed, p["wo"]) + p["bo"]


def causal(sequence: int) -> jax.Array:
    """Which positions each one sees, [s, s]: itself and those before it."""
    position = jnp.arange(sequence)
    return position[:, None] >= position[None, :]


def causal_attention(p: Params, x: jax.Array) -> jax.Array:
    """Attention of each position to itself and those before it: [b, s, d] -> [b, s, d]."""
    return attention(p, x, x, causal(x.shape[1]))


def mlp_init(key: jax.Array, hidden: int, ffn: int, dtype: np.dtype, out_std: float) -> Params:
    """Two dense layers with biases."""
    k1, k2 = jax.random.split(key)
    return {
        "w1": normal(k1, (hidden, ffn), dtype),
        "b1": jnp.zeros((ffn,), dtype),
        "w2": normal(k2, (ffn, hidden), dtype, out_std),
        "b2": jnp.zeros((hidden,), dtype),
    }


def mlp(p: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu) -> jax.Array:
    """Dense, activation, dense: [..., d] -> [..., f] -> [..., d]."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), p)
    return activation(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def gated_mlp_init(key: jax.Array, hidden: int, ffn: int, dtype: np.dtype, out_std: float) -> Params:
    """Three matrices without biases."""
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "gate": normal(k1, (hidden, ffn), dtype),
        "up": normal(k2, (hidden, ffn), dtype),
        "down": normal(k3, (ffn, hidden), dtype, out_std),
    }


def gated_mlp(p: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.silu) -> jax.Array:
    """Feed-forward with a gate (Shazeer 2020), SwiGLU with the default activation: [..., d] -> [..., f] -> [..., d]."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), p)
    return (activation(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def sinusoids(positions: jax.Array, hidden: int) -> jax.Array:
    """Sines, then cosines, of falling frequencies (Vaswani et al. 2017, section 3.5): [n] -> [n, d]."""
    frequency = 10_000.0 ** (-jnp.arange(0, hidden, 2, dtype=positions.dtype) / hidden)
    angle = positions[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


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
    return smoothed_cross_entropy(logits, targets, 0.0).mean()


def smoothed_cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Cross entropy with targets of which a share is spread evenly over the vocabulary (Szegedy et al. 2015).

    Args:
        logits: [..., v].
        targets: [...] integers in [0, v).
        smoothing: that share, in [0, 1).

    Returns:
        [...], in nats.
    """
    one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    if not smoothing:
        return normaliser - jnp.sum(logits * one_hot, axis=-1)
    wanted = (1.0 - smoothing) * one_hot + smoothing / logits.shape[-1]
    return normaliser - jnp.sum(logits * wanted, axis=-1)
