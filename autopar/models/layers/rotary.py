"""Rotary positions (Su et al. 2021)."""

import jax
import jax.numpy as jnp


def rotary(x: jax.Array, theta: float) -> jax.Array:
    """Turns pairs of numbers by an angle that grows with the position; a pair is a number of each half of the head.

    Args:
        x: [b, s, ..., k], queries or keys; k is even.
        theta: the slowest pair turns by 1 / theta (nearly) per position, the first one by 1.

    Returns:
        [b, s, ..., k], computed in float32 at least, returned in the dtype of `x`.
    """
    half = x.shape[-1] // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle = jnp.arange(x.shape[1], dtype=dtype)[:, None] * frequency
    angle = angle.reshape(x.shape[1], *[1] * (x.ndim - 3), half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    left, right = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
