"""Each move between layouts as one collective (or none), inside ``shard_map``."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from autopar.lower.localize import Axes
from autopar.sharding.layout import MAX, MIN, Collective, Move


def convert(x: Array, move: Move, axes: Axes, shape: Sequence[int]) -> Array:
    """Apply one move to this device's part.

    Args:
      x: the part, in a layout whose placement on ``move.axis`` is ``move.src``.
      move: one of ``layout.moves(shape, layout, axes.sizes)``.
      axes: the mesh.
      shape: global shape of the array.

    Returns:
      The part in the layout ``move.apply(layout)``.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        # A key is an array of words with one more, trailing dim: no dim number changes.
        return jax.random.wrap_key_data(_convert(jax.random.key_data(x), move, axes), impl=jax.random.key_impl(x))
    if x.dtype == jnp.bool_:
        # As numbers: or is max, and is min, and of a filled value all but one addend are 0.
        return _convert(x.astype(jnp.uint8), move, axes).astype(jnp.bool_)
    return _convert(x, move, axes)


def _convert(x: Array, move: Move, axes: Axes) -> Array:
    name, size = axes.names[move.axis], axes.sizes[move.axis]
    match move.kind:
        case Collective.ALL_REDUCE:
            reduce = {MAX: lax.pmax, MIN: lax.pmin}.get(move.src, lax.psum)
            return reduce(x, name)
        case Collective.REDUCE_SCATTER:
            return lax.psum_scatter(x, name, scatter_dimension=move.dst, tiled=True)
        case Collective.ALL_GATHER:
            return lax.all_gather(x, name, axis=move.src, tiled=True)
        case Collective.ALL_TO_ALL:
            return lax.all_to_all(x, name, split_axis=move.dst, concat_axis=move.src, tiled=True)
        case Collective.SLICE:
            part = x.shape[move.dst] // size
            if jnp.issubdtype(x.dtype, jnp.integer):
                # XLA (jaxlib 0.10.2, CPU) takes a slice of a multiple of a slice of an iota for a slice of the iota.
                x = lax.optimization_barrier(x)
            return lax.dynamic_slice_in_dim(x, axes.position(move.axis) * part, part, axis=move.dst)
        case _:
            return jnp.where(axes.position(move.axis) == 0, x, jnp.zeros((), x.dtype))
