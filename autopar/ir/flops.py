"""How much arithmetic a step is: multiplications and additions of its matrix products and convolutions.

These are the FLOPs of *model FLOPs utilisation* (Chowdhery et al. 2022, appendix B). Elementwise work, which memory
limits, is left out, and what only runs again to save memory is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from autopar.ir.graph import Graph, Op, Value

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general"})


def product_flops(graph: Graph, *, again: bool = False) -> dict[str, float]:
    """FLOPs of matrix products and convolutions of all devices together, by the dtype of what is multiplied.

    A scan counts as often as it runs, a conditional as its dearest branch, a ``while`` once.

    Args:
      graph: the step.
      again: of what the user's ``jax.checkpoint`` runs again, instead of all else.
    """
    return {dtype: n for dtype, n in sorted(_of_ops(graph.ops, graph.values, again).items()) if n}


def op_flops(op: Op, values: Mapping[int, Value]) -> float:
    """FLOPs of the matrix products and convolutions of an op and of what is inside it, in one run of it."""
    return sum((_of_op(op, values, False) + _of_op(op, values, True)).values())


def _of_ops(ops: Iterable[Op], values: Mapping[int, Value], again: bool) -> Counter[str]:
    found: Counter[str] = Counter()
    for op in ops:
        found += _of_op(op, values, again)
    return found


def _of_op(op: Op, values: Mapping[int, Value], again: bool) -> Counter[str]:
    if op.loop is None:
        counts = op.primitive in _PRODUCTS and op.where.again == again
        return Counter({values[op.operands[0]].dtype: op.rule.flops}) if counts else Counter()
    inside = [_of_ops(region.ops, values, again) for region in op.regions]
    if op.loop.kind == "cond":
        return max(inside, key=lambda found: sum(found.values()), default=Counter())
    total: Counter[str] = Counter()
    for found in inside:
        total += Counter({dtype: n * op.loop.length for dtype, n in found.items()})
    return total
