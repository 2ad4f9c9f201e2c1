"""Check a graph before trusting it."""

from __future__ import annotations

import math

from autopar.errors import InternalError
from autopar.ir.graph import Graph, Op


def verify(graph: Graph) -> Graph:
    """Return ``graph``, having checked that it is well formed.

    Raises:
      InternalError: an operand is used before it is made, a value is made twice, or a rule disagrees with
        the shapes of its operands and results. It names the op and the user's line.
    """
    _verify(graph, known=set())
    return graph


def _verify(graph: Graph, known: set[int]) -> None:
    known = known | set(graph.inputs) | set(graph.constants)
    for op in graph.ops:
        for v in op.operands:
            if v not in known and not graph.values[v].literal:
                raise InternalError(f"{op.primitive} at {op.where.line} reads value {v} before it is made")
        for v in op.results:
            if v in known:
                raise InternalError(f"{op.primitive} at {op.where.line} makes value {v} a second time")
        if op.loop is None:
            _verify_rule(graph, op)
        for region in op.regions:
            _verify(region, known)
        known.update(op.results)
    for v in graph.outputs:
        if v not in known and not graph.values[v].literal:
            raise InternalError(f"output {v} is never made")


def _verify_rule(graph: Graph, op: Op) -> None:
    sides = ((op.operands, op.rule.operands), (op.results, op.rule.results))
    for ids, dims_of in sides:
        if len(ids) != len(dims_of):
            raise InternalError(f"rule of {op.primitive} names {len(dims_of)} tensors, the op has {len(ids)}")
        for v, dims in zip(ids, dims_of, strict=True):
            shape = graph.values[v].shape
            sizes = tuple(math.prod(op.rule.factors[f].size for f in dim) for dim in dims)
            if len(sizes) != len(shape) or any(s != n for d, s, n in zip(dims, sizes, shape, strict=True) if d):
                raise InternalError(
                    f"rule {op.rule.text!r} of {op.primitive} at {op.where.line} gives sizes {sizes} "
                    f"for a value of shape {shape}"
                )
