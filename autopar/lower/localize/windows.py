"""Local convolutions and window reductions: fetch the halo, then run the whole op's window on the part."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from autopar.lower.localize.local import Local
from autopar.sharding.halo import Window, halo_axes, slabs
from autopar.sharding.rules import Site, conv_windows, pool_windows


def fetch(x: Array, dim: int, name: str, size: int, halo: tuple[int, int], fill: Array | float = 0) -> Array:
    """``x`` with ``halo`` points of the neighbours along mesh axis ``name`` on either side of ``dim``.

    Args:
      x: this device's part.
      dim: the split dim.
      name: mesh axis.
      size: devices along it.
      halo: points wanted from the (lower, higher) neighbours.
      fill: what lies beyond the first and the last device.
    """
    points = x.shape[dim]
    here = lax.axis_index(name)
    sides: dict[bool, list[Array]] = {True: [], False: []}
    for hop, width in slabs(points, size, halo):
        lower = hop > 0
        start = points - width if lower else 0
        slab = lax.slice_in_dim(x, start, start + width, axis=dim)
        slab = lax.ppermute(slab, name, [(i, i + hop) for i in range(size) if 0 <= i + hop < size])
        beyond = here < hop if lower else here >= size + hop
        sides[lower].append(jnp.where(beyond, jnp.asarray(fill, x.dtype), slab))
    low, high = sides[True][::-1], sides[False]
    for side, parts, wanted in ((True, low, halo[0]), (False, high, halo[1])):
        missing = wanted - sum(p.shape[dim] for p in parts)
        if missing:  # further than the mesh reaches: beyond the array on every device
            shape = (*x.shape[:dim], missing, *x.shape[dim + 1 :])
            rest = jnp.full(shape, jnp.asarray(fill, x.dtype))
            parts.insert(0 if side else len(parts), rest)
    return lax.concatenate([*low, x, *high], dim) if low or high else x


def fetch_all(local: Local, x: Array, fill: Array | float = 0) -> Array:
    """Operand 0 with every halo its strategy needs; corners come with the second dim."""
    for axis, dim, halo in halo_axes(local.op.rule, local.strategy):
        x = fetch(x, dim, local.axes.names[axis], local.axes.sizes[axis], halo, fill)
    return x


def _padding(
    local: Local, x: Array, windows: Sequence[Window], dims: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Padding per window: the whole op's where the dim is whole, else what the part with its halo needs."""
    padding = []
    for window, whole, (dim, out) in zip(windows, local.params["padding"], dims, strict=True):
        split = local.is_split(0, dim)
        padding.append(window.padding(x.shape[dim], local.result_shape()[out]) if split else tuple(whole))
    return tuple(padding)


def conv_general_dilated(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Groups are counted on local channels; spatial padding is what the halo leaves to be padded."""
    lhs, rhs = operands
    numbers = local.params["dimension_numbers"]
    lhs = fetch_all(local, lhs)
    dims = list(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True))
    features, batches = local.params["feature_group_count"], local.params["batch_group_count"]
    if features > 1:
        features = lhs.shape[numbers.lhs_spec[1]] // rhs.shape[numbers.rhs_spec[1]]
    if batches > 1:
        batches = lhs.shape[numbers.lhs_spec[0]] // local.result_shape()[numbers.out_spec[0]]
    return local.bind(
        [lhs, rhs],
        padding=_padding(local, lhs, conv_windows(_site(local, operands)), dims),
        feature_group_count=features,
        batch_group_count=batches,
    )


def reduce_window(local: Local, operands: Sequence[Array]) -> list[Array]:
    """Beyond the array lies the identity of the reduction."""
    x, *others = operands
    fill = others[-1] if local.primitive.name == "reduce_window" else _identity(local.primitive.name, x)
    x = fetch_all(local, x, fill)
    dims = [(d, d) for d in range(x.ndim)]
    return local.bind([x, *others], padding=_padding(local, x, pool_windows(_site(local, operands)), dims))


def _identity(primitive: str, x: Array) -> Array | float:
    if primitive == "reduce_window_sum":
        return 0
    if x.dtype == jnp.bool_:
        return primitive == "reduce_window_min"
    highest = jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).max
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return jnp.asarray(lowest if primitive == "reduce_window_max" else highest, x.dtype)


def _site(local: Local, operands: Sequence[Array]) -> Site:
    """What the window rules read: parameters, and a kernel whose spatial dims are whole."""
    return Site(local.primitive.name, tuple(operands), (), local.params)  # type: ignore[arg-type]


def cropped(local: Local, operands: Sequence[Array]) -> list[Array]:
    """A user's primitive with a halo: run it on the part with its halo, keep the middle of the results."""
    halos = halo_axes(local.op.rule, local.strategy)
    if not halos:
        return local.bind(operands)
    results = local.bind([fetch_all(local, operands[0]), *operands[1:]])
    for axis, _, (low, _high) in halos:
        for i, placement in enumerate(local.strategy.actions[axis].results):
            made = local.result_shape(i)[placement]
            results[i] = lax.slice_in_dim(results[i], low, low + made, axis=placement)
    return results
