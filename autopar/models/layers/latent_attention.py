"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values from one small vector.

Names of dims in comments: b batch, s and t sequence, d hidden, h heads, k numbers of a head, r rank.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.layers import plain as L
from autopar.models.layers.rotary import rotary


@dataclass(frozen=True)
class LatentSizes:
    """Sizes of latent attention.

    Attributes:
        heads: number of heads.
        q_rank: what queries are compressed to; None projects them from the hidden vector at once.
        kv_rank: what keys and values are compressed to, together: all that a cache would hold, but for `rope`.
        nope: numbers of a head's query and key without position.
        rope: numbers with position, whose key all heads share; even.
        value: numbers of a head's value.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int


def latent_attention_init(key: jax.Array, hidden: int, c: LatentSizes, dtype: np.dtype, out_std: float) -> L.Params:
    """Projections down to the ranks, norms of what is there, and projections up to the heads; no biases."""
    keys = iter(jax.random.split(key, 8))

    def weight(*shape: int, std: float = 0.02) -> jax.Array:
        return L.normal(next(keys), shape, dtype, std)

    q_inputs = hidden if c.q_rank is None else c.q_rank
    compressed = (
        {} if c.q_rank is None else {"q_down": weight(hidden, c.q_rank), "q_norm": L.rms_norm_init(c.q_rank, dtype)}
    )
    return compressed | {
        "q_nope": weight(q_inputs, c.heads, c.nope),
        "q_rope": weight(q_inputs, c.heads, c.rope),
        "kv_down": weight(hidden, c.kv_rank),
        "kv_norm": L.rms_norm_init(c.kv_rank, dtype),
        "k_nope": weight(c.kv_rank, c.heads, c.nope),
        "k_rope": weight(hidden, c.rope),
        "value": weight(c.kv_rank, c.heads, c.value),
        "out": weight(c.heads, c.value, hidden, std=out_std),
    }


def latent_attention(p: L.Params, x: jax.Array, theta: float) -> jax.Array:
    """Causal attention, equations 1 to 11 of DeepSeek-V3 (DeepSeek-AI 2024).

    Neither the queries' nor the keys' two parts are joined: the score of the whole is the sum of those of the parts.

    Args:
        p: what `latent_attention_init` returns.
        x: [b, s, d].
        theta: base of the rotary frequencies.

    Returns:
        [b, s, d].
    """
    w = {name: p[name].astype(x.dtype) for name in p if not name.endswith("norm")}
    q = L.rms_norm(p["q_norm"], x @ w["q_down"]) if "q_down" in p else x
    kv = L.rms_norm(p["kv_norm"], x @ w["kv_down"])
    q_nope = jnp.einsum("bsr,rhk->bshk", q, w["q_nope"])
    q_rope = rotary(jnp.einsum("bsr,rhk->bshk", q, w["q_rope"]), theta)
    k_nope = jnp.einsum("btr,rhk->bthk", kv, w["k_nope"])
    k_rope = rotary(x @ w["k_rope"], theta)
    value = jnp.einsum("btr,rhk->bthk", kv, w["value"])

    scores = jnp.einsum("bshk,bthk->bhst", q_nope, k_nope) + jnp.einsum("bshk,btk->bhst", q_rope, k_rope)
    scores = scores * (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    scores = jnp.where(L.causal(x.shape[1]), scores.astype(jnp.promote_types(x.dtype, jnp.float32)), L.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhst,bthk->bshk", weights, value)
    return jnp.einsum("bshk,hkd->bsd", mixed, w["out"])
