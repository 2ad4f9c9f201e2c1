"""The table: primitive name -> how it runs on a part. What is not in it runs unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax import Array

from autopar import ir
from autopar.lower.localize import indexing, shaping, windows
from autopar.lower.localize.local import Axes, Local, Shape
from autopar.sharding.strategy import Strategy

Adapter = Callable[[Local, Sequence[Array]], list[Array]]

TABLE: Mapping[str, Adapter] = {
    "broadcast_in_dim": shaping.broadcast_in_dim,
    "conv_general_dilated": windows.conv_general_dilated,
    "device_put": shaping.identity,
    "dynamic_slice": shaping.dynamic_slice,
    "empty": shaping.empty,
    "fft": shaping.fft,
    "gather": indexing.gather,
    "iota": shaping.iota,
    "layout_constraint": shaping.identity,
    "reduce_window": windows.reduce_window,
    "reduce_window_max": windows.reduce_window,
    "reduce_window_min": windows.reduce_window,
    "reduce_window_sum": windows.reduce_window,
    "reshape": shaping.reshape,
    "scatter": indexing.scatter,
    "scatter-add": indexing.scatter,
    "scatter-max": indexing.scatter,
    "scatter-min": indexing.scatter,
    "scatter-mul": indexing.scatter,
    "scatter-sub": indexing.scatter,
    "sharding_constraint": shaping.identity,
    "slice": shaping.slice_,
    "tile": shaping.tile,
}


def localize(
    op: ir.Op,
    equation: Any,
    strategy: Strategy,
    axes: Axes,
    shapes: tuple[Sequence[Shape], Sequence[Shape]],
    operands: Sequence[Array],
) -> list[Array]:
    """Run one op on this device's parts, while tracing inside ``shard_map`` with every axis manual.

    Args:
      op: the op, with its rule.
      equation: the jax equation: its ``primitive`` and ``params``.
      strategy: one of ``strategies(op.rule, axes.sizes)``.
      axes: the mesh.
      shapes: global shapes of (operands, results).
      operands: local parts in the layouts ``strategy.operands``.

    Returns:
      Local parts in the layouts ``strategy.results``; partial results are not reduced here. The only
      communication is the exchange of halos.
    """
    ins, outs = (tuple(map(tuple, side)) for side in shapes)
    local = Local(op, equation.primitive, equation.params, strategy, axes, ins, outs)
    return TABLE.get(equation.primitive.name, windows.cropped)(local, operands)
