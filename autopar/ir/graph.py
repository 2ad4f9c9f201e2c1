"""The traced step as plain data: values, ops, and the regions of control flow. No jax.

Ids are unique across a graph and all its regions, so ``plan.layouts[value_id]`` needs no path.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autopar.ir.rule import Rule

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "int4": 1, "uint4": 1, "int2": 1, "uint2": 1,
}  # fmt: skip


def item_bytes(dtype: str) -> int:
    """Bytes of one element; an extended dtype such as ``key<fry>`` counts as two 32-bit words."""
    if dtype.startswith("float8"):
        return 1
    return ITEM_BYTES.get(dtype, 8)


@dataclass(frozen=True, slots=True)
class Value:
    """An array: an input, a constant, a literal, or the result of an op.

    Attributes:
      id: unique in the graph and its regions.
      shape: global shape.
      dtype: numpy or extended dtype name.
      name: the path of an input (``state.params['w']``), empty for a result.
      literal: a scalar written into the program; it has no storage and no layout choice.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    name: str = ""
    literal: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * item_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class Where:
    """Where an op comes from, for people.

    Attributes:
      line: the user's innermost source line, ``file.py:12 (function)``.
      scope: named scopes, ``layer_3/attn``, without the transformations around them.
      stack: the user's call stack, innermost first; equal stacks mean "the same code, run again".
      phase: ``forward``, ``backward`` or ``update``.
      mark: what the rewriting that made this op calls it (see :mod:`autopar.lower.emit`); empty as traced.
      again: a ``jax.checkpoint`` of the user's runs it a second time, to save memory.
    """

    line: str = ""
    scope: str = ""
    stack: str = ""
    phase: str = "update"
    mark: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Loop:
    """How a region op passes values: the operands and results of ``scan``, ``while`` and ``cond``.

    ``scan``: operands = consts, carry, xs; results = carry, ys; one body region.
    ``while``: operands = cond consts, body consts, carry; results = carry; regions = (cond, body).
    ``cond``: operands = index, then operands of every branch; results likewise; a region per branch.

    Attributes:
      kind: ``scan``, ``while`` or ``cond``.
      length: trip count of a scan; 1 for the others (unknown).
      consts: number of loop-invariant operands (``while``: of the body).
      carry: number of loop-carried values.
      cond_consts: ``while`` only: number of constants of the condition.
    """

    kind: str
    length: int = 1
    consts: int = 0
    carry: int = 0
    cond_consts: int = 0


@dataclass(frozen=True, slots=True)
class Op:
    """One primitive application.

    Attributes:
      id: unique in the graph and its regions; the jax equation is kept by this id.
      primitive: jax primitive name.
      operands, results: value ids.
      rule: its factors. A region op's rule is empty: ``loop`` and ``regions`` say what it does.
      params: digest of the primitive's parameters: equal digests mean equal parameters.
      where: source line, scope, phase.
      opaque: no rule was known; operands are gathered.
      regions, loop: the bodies of control flow.
    """

    id: int
    primitive: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    rule: Rule
    params: str = ""
    where: Where = Where()
    opaque: bool = False
    regions: tuple[Graph, ...] = ()
    loop: Loop | None = None


@dataclass(frozen=True)
class Graph:
    """Ops in execution order (every operand is an input, constant, literal or earlier result).

    Attributes:
      inputs: value ids of the arguments, in order.
      outputs: value ids of the results, in order (may repeat, may be inputs or literals).
      ops: in execution order, without dead code.
      values: every value of this graph and of its regions.
      constants: value ids of captured arrays.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ops: tuple[Op, ...]
    values: Mapping[int, Value] = field(repr=False)
    constants: tuple[int, ...] = ()

    def walk(self) -> Iterator[Op]:
        """Every op, regions after the op that holds them."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of structure, shapes and parameters; independent of names and source lines."""
        digest = hashlib.sha256()

        def feed(graph: Graph) -> None:
            digest.update(repr((graph.inputs, graph.outputs, graph.constants)).encode())
            for op in graph.ops:
                digest.update(repr((op.primitive, op.params, op.operands, op.results, op.loop)).encode())
                for region in op.regions:
                    feed(region)

        feed(self)
        for v in self.values.values():
            digest.update(repr((v.id, v.shape, v.dtype)).encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Step:
    """A training step as the planner sees it: a graph, and what its arguments are for.

    Attributes:
      graph: the computation.
      state: pairs (input index, output index): a leaf of the state and its successor, kept in one layout.
      donated: input indices whose buffers the step may reuse.
      batch: input indices of the data (not state, not random keys).
      name: the user's function.
      apart: the forward and the backward pass are programs of their own: what one hands to the other is stored.
    """

    graph: Graph
    state: tuple[tuple[int, int], ...] = ()
    donated: frozenset[int] = frozenset()
    batch: tuple[int, ...] = ()
    name: str = "step"
    apart: bool = False
