"""Masked spans, and the contrastive task of wav2vec 2.0 (Baevski et al. 2020, section 3) on them."""

import jax
import jax.numpy as jnp

from autopar.models.layers.plain import MASKED

KAPPA = 0.1  # temperature of the similarities


def masked_spans(key: jax.Array, heard: jax.Array, share: float, span: int) -> jax.Array:
    """Each frame begins a span with probability `share`; spans are of equal length, and may overlap.

    Args:
        key: what they are drawn from.
        heard: [b, s] booleans; what is not heard is not masked.
        share: in (0, 1).
        span: frames.

    Returns:
        [b, s] booleans.
    """
    begins = jax.random.bernoulli(key, share, heard.shape)
    begun = jnp.cumsum(begins.astype(jnp.int32), axis=1)
    earlier = jnp.pad(begun, ((0, 0), (span, 0)))[:, : heard.shape[1]]
    return (begun > earlier) & heard


def draw_distractors(key: jax.Array, masked: jax.Array, count: int) -> jax.Array:
    """For each frame, others of the same utterance that are masked, drawn evenly and with replacement.

    Args:
        key: what they are drawn from.
        masked: [b, s] booleans.
        count: distractors of each frame.

    Returns:
        [b, s, count] int32 frames; those of a frame that is not masked, or masked alone, mean nothing.
    """
    frames = masked.shape[1]
    order = jnp.argsort(~masked, axis=1, stable=True).astype(jnp.int32)
    rank = (jnp.cumsum(masked, axis=1, dtype=jnp.int32) - 1)[..., None]
    others = masked.sum(axis=1, dtype=jnp.int32)[:, None, None] - 1
    # Any of many numbers, modulo the others: all but even.
    number = jax.random.randint(key, (*masked.shape, count), 0, 2**30, jnp.int32) % jnp.maximum(others, 1)
    number = jnp.minimum(number + (number >= rank), frames - 1)
    return jnp.take_along_axis(order[:, None, :], number, axis=2)


def contrastive_loss(context: jax.Array, targets: jax.Array, masked: jax.Array, distractors: jax.Array) -> jax.Array:
    """Minus the log-probability of a frame's own target among the distractors, by cosine similarity (equation 3).

    Args:
        context: [b, s, c], what the masked frames are taken for.
        targets: [b, s, c], quantised frames.
        masked: [b, s] booleans, which frames count; those masked alone in an utterance have loss zero.
        distractors: [b, s, k] frames, what `draw_distractors` returns.

    Returns:
        [b], in nats summed over the frames.
    """
    dtype = jnp.promote_types(context.dtype, jnp.float32)
    similarity = jnp.einsum("bsc,btc->bst", _unit(context), _unit(targets)).astype(dtype) / KAPPA
    own = jnp.einsum("bss->bs", similarity)
    others = jnp.take_along_axis(similarity, distractors, axis=2)
    others = jnp.where(masked.sum(axis=1)[:, None, None] > 1, others, MASKED)
    nll = jax.nn.logsumexp(jnp.concatenate([own[..., None], others], axis=-1), axis=-1) - own
    return jnp.where(masked, nll, 0.0).sum(axis=1)


def _unit(x: jax.Array) -> jax.Array:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (y * jax.lax.rsqrt(jnp.square(y).sum(axis=-1, keepdims=True) + 1e-12)).astype(x.dtype)
