"""Relative positions as a number per head and bucket of distances, added to attention's scores (Raffel et al. 2019)."""

import jax
import jax.numpy as jnp
import numpy as np

NEAR, BUCKETS, FARTHEST = 16, 32, 128


def first_distances(dtype: np.dtype) -> jax.Array:
    """The least distance in each bucket, [32]: one each for 0 to 15, then ever more, from 128 on all in the last."""
    bucket = jnp.arange(BUCKETS, dtype=dtype)
    far = jnp.ceil(NEAR * (FARTHEST / NEAR) ** ((bucket - NEAR) / (BUCKETS - NEAR)))
    return jnp.where(bucket < NEAR, bucket, far)


def relative_bias(table: jax.Array, sequence: int) -> jax.Array:
    """What is added to the scores of positions and those before them.

    One product with a one-hot tensor, which splits over positions and heads where a lookup would not.

    Args:
        table: [32, h], learned.
        sequence: number of positions s.

    Returns:
        [h, s, s], the position that asks first; zero for those after it.
    """
    position = jnp.arange(sequence, dtype=table.dtype)
    distance = position[:, None] - position[None, :]
    reached = (distance[..., None] >= first_distances(table.dtype)).astype(table.dtype)
    # Every bucket up to the one that the distance is in has been reached.
    bucket = reached - jnp.pad(reached[..., 1:], [(0, 0), (0, 0), (0, 1)])
    return jnp.einsum("stn,nh->hst", bucket, table)
