"""Local versions of primitives whose parameters hold shapes."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from autopar.lower.localize.local import Local


def broadcast_in_dim(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Each device broadcasts to its part."""
    return local.bind(operands, shape=local.result_shape())


def empty(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Each device reserves its part."""
    return local.bind(operands, shape=local.result_shape())


def reshape(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Whole slabs of both shapes agree, so the parts are reshapes of each other."""
    return local.bind(operands, new_sizes=local.result_shape())


def tile(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Repeats are split before the repeated dim is."""
    pairs = zip(local.result_shape(), local.operand_shape(), local.params["reps"], strict=True)
    return local.bind(operands, reps=tuple(made // points if points else reps for made, points, reps in pairs))


def iota(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Count from where this device's part starts."""
    shape, dim = local.result_shape(), local.params["dimension"]
    if shape[dim] == local.results[0][dim]:
        return local.bind(operands, shape=shape)
    # Counting in integers and converting once rounds as the whole op does, in every dtype.
    wide = jnp.int64 if local.results[0][dim] > jnp.iinfo(jnp.int32).max else jnp.int32
    counted = lax.broadcasted_iota(wide, shape, dim) + jnp.asarray(local.result_offset(0, dim), wide)
    return [lax.convert_element_type(counted, local.params["dtype"])]


def slice_(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Dims kept in full are kept in full."""
    here = local.operand_shape()
    full = [n == m for n, m in zip(local.operands[0], local.results[0], strict=True)]
    strides = local.params["strides"]
    return local.bind(
        operands,
        start_indices=tuple(0 if f else s for f, s in zip(full, local.params["start_indices"], strict=True)),
        limit_indices=tuple(n if f else s for f, n, s in zip(full, here, local.params["limit_indices"], strict=True)),
        strides=None if strides is None else tuple(1 if f else s for f, s in zip(full, strides, strict=True)),
    )


def dynamic_slice(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Dims kept in full have their index clamped to 0, here as in the whole op."""
    return local.bind(operands, slice_sizes=local.result_shape())


def identity(local: Local, operands: Sequence[Array]) -> list[Array]:
    """A wish about placement: the plan has decided."""
    return list(operands)


def fft(local: Local, operands: Sequence[Array]) -> list[Array]:
    """The transform itself, fenced off on the CPU, whose kernel takes row-major arrays only.

    XLA lets the layout of a neighbouring all-gather or transpose spread to the transform and then fails; an
    array of one dim has only one layout.
    """
    (x,) = operands
    (y,) = local.bind([lax.platform_dependent(x, cpu=_row_major, default=_unchanged)])
    return [lax.platform_dependent(y, cpu=_row_major, default=_unchanged)]


def _row_major(x: Array) -> Array:
    return lax.reshape(lax.optimization_barrier(lax.reshape(x, (x.size,))), x.shape)


def _unchanged(x: Array) -> Array:
    return x
