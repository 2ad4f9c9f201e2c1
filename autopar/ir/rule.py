"""What a primitive does, said once: the factors of its iteration space.

A rule is einsum-like. Every operand and result dim is a compound of factors, major to minor::

    dot_general   "b m k, b k n -> b m n"     k is summed: reduction
    reshape       "(a b) c -> a b c"          a compound dim is split into factors

Planner, lowering and micro-batching read nothing else about a primitive's parallelism.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property


class Kind(enum.Enum):
    """How a factor may be split over devices."""

    PARALLEL = "parallel"  # in operands and results alike: each device does its own part
    REDUCTION = "reduction"  # in operands only: each device holds a partial result
    FREE = "free"  # in results only: each device makes its own part of the result
    HALO = "halo"  # parallel, but an operand's edge is needed from the neighbours
    WHOLE = "whole"  # cannot be split


class Reduce(enum.Enum):
    """How partial results combine."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Factor:
    """One axis of an op's iteration space.

    Attributes:
      name: a word, unique within the rule.
      size: number of points (elements, not bytes).
      kind: how it may be split.
      reduce: how partial results combine, where ``kind`` is REDUCTION.
      halo: elements of operand 0 that one shard needs from its (lower, higher) neighbour, where ``kind``
        is HALO. They are the same for every shard count that divides the dim.
    """

    name: str
    size: int
    kind: Kind = Kind.PARALLEL
    reduce: Reduce = Reduce.SUM
    halo: tuple[int, int] = (0, 0)


Dims = tuple[tuple[int, ...], ...]  # per tensor dim: indices into Rule.factors, major to minor


@dataclass(frozen=True)
class Rule:
    """The factors of one op, and where each stands in its operands and results.

    Attributes:
      factors: the iteration space.
      operands: per operand, per dim, the factors that make up the dim. A dim of size 1 has none.
      results: likewise per result.
      linear: groups of operand indices in which the op is jointly linear (``add``: ``((0, 1),)``; ``mul``:
        ``((0,), (1,))``). If all operands of one group are partial sums and the others are whole, every
        result is a partial sum.
      accumulators: operands that the op adds its reduction onto (``scatter-add`` operand 0). When a
        reduction factor is split they must be partial sums themselves.
      flops: floating-point operations of the whole op.
    """

    factors: tuple[Factor, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    linear: tuple[tuple[int, ...], ...] = ()
    accumulators: tuple[int, ...] = ()
    flops: float = 0.0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.factors, self.operands, self.results, self.linear, self.accumulators, self.flops))

    @cached_property
    def text(self) -> str:
        """The rule as an einsum-like line: ``b m k, b k n -> b m n``."""

        def dim(factors: tuple[int, ...]) -> str:
            names = " ".join(self.factors[f].name for f in factors)
            return names if len(factors) == 1 else f"({names})" if factors else "1"

        def side(tensors: tuple[Dims, ...]) -> str:
            return ", ".join(" ".join(dim(d) for d in t) or "." for t in tensors)

        return f"{side(self.operands)} -> {side(self.results)}"
