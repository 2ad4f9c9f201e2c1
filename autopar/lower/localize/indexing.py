"""Local gather and scatter: indices that fall on another device's part are masked."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jax.lax import GatherScatterMode

from autopar.lower.localize.local import Local
from autopar.sharding.rules import mode_name


def gather(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Masked lookup where an indexed dim is split, else the op itself on its part."""
    numbers = local.params["dimension_numbers"]
    here = local.operand_shape()
    sizes = [
        points
        if n == size and d not in numbers.collapsed_slice_dims and d not in numbers.operand_batching_dims
        else size
        for d, (points, n, size) in enumerate(zip(here, local.operands[0], local.params["slice_sizes"], strict=True))
    ]
    masked = [d for d in numbers.collapsed_slice_dims if local.is_split(0, d)]
    if not masked:
        return local.bind(operands, slice_sizes=tuple(sizes))
    x, indices = operands
    fills = mode_name(local.params["mode"]) == "FILL_OR_DROP"
    inside = jnp.ones(indices.shape[:-1], bool)  # the whole op finds the slice within the array
    mine = inside  # the slice, clamped, lies on this device
    columns = []
    for column, d in zip(_columns(indices, local.operands[0]), numbers.start_index_map, strict=True):
        last = local.operands[0][d] - local.params["slice_sizes"][d]
        inside &= (column >= 0) & (column <= last)
        at = jnp.clip(column, 0, last)
        if d in masked:
            at = at - jnp.asarray(local.operand_offset(0, d), at.dtype)
            mine &= (at >= 0) & (at < here[d])
            at = jnp.clip(at, 0, here[d] - 1)
        columns.append(at)
    (found,) = local.bind(
        [x, jnp.stack(columns, axis=-1)],
        slice_sizes=tuple(sizes),
        mode=GatherScatterMode.PROMISE_IN_BOUNDS,
        fill_value=None,
        indices_are_sorted=False,
        unique_indices=False,
    )
    batch = [d for d in range(found.ndim) if d not in numbers.offset_dims]

    def spread(mask: Array) -> Array:
        return lax.broadcast_in_dim(mask, found.shape, batch)

    keep = mine & inside if fills else mine
    found = jnp.where(spread(keep), found, jnp.zeros((), found.dtype))
    if fills:  # written once, so that the sum over devices holds it once
        fill = jnp.asarray(_fill(local, found), found.dtype)
        found = jnp.where(spread(~inside & local.first_of_reduction()), fill, found)
    return [found]


def _fill(local: Local, found: Array) -> float | int | bool:
    """What stands for a slice out of bounds: jax's default where none is given."""
    given = local.params["fill_value"]
    if given is not None:
        return given
    if jnp.issubdtype(found.dtype, jnp.inexact):
        return jnp.nan
    if found.dtype == jnp.bool_:
        return True
    bounds = jnp.iinfo(found.dtype)
    return int(bounds.min if bounds.min < 0 else bounds.max)


def scatter(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Updates for other devices' parts of an indexed dim are sent out of bounds, where they are dropped."""
    numbers = local.params["dimension_numbers"]
    masked = [d for d in numbers.inserted_window_dims if local.is_split(0, d)]
    if not masked:
        return local.bind(operands)
    x, indices, updates = operands
    clips = mode_name(local.params["mode"]) == "CLIP"
    windows = dict(zip(_window_dims(local), numbers.update_window_dims, strict=True))
    columns = []
    for column, d in zip(_columns(indices, local.operands[0]), numbers.scatter_dims_to_operand_dims, strict=True):
        size = local.operands[2][windows[d]] if d in windows else 1
        at = jnp.clip(column, 0, local.operands[0][d] - size) if clips else column
        if d in masked:
            here = x.shape[d]
            at = at - jnp.asarray(local.operand_offset(0, d), at.dtype)
            at = jnp.where((at >= 0) & (at < here), at, here)
        columns.append(at)
    return local.bind(
        [x, jnp.stack(columns, axis=-1), updates],
        mode=GatherScatterMode.FILL_OR_DROP,
        indices_are_sorted=False,
        unique_indices=False,  # several updates may go to the same place out of bounds
    )


def _window_dims(local: Local) -> list[int]:
    """Operand dims that an update's window covers, in order."""
    numbers = local.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    return [d for d in range(len(local.operands[0])) if d not in gone]


def _columns(indices: Array, shape: Sequence[int]) -> list[Array]:
    """The components of the index vectors, signed and wide enough to be shifted by any offset."""
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        # An index this large is out of bounds in every dim; clamped, it stays so in a signed type.
        indices = jnp.minimum(indices, min(max(shape, default=0), int(jnp.iinfo(indices.dtype).max)))
    wide = jnp.int64 if indices.dtype.itemsize == 8 else jnp.int32
    indices = indices.astype(wide)
    return [indices[..., c] for c in range(indices.shape[-1])]
