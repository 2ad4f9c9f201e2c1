"""How one tensor lies on a logical mesh: one placement per mesh axis.

A placement is an ``int``: ``d >= 0`` splits tensor dim ``d`` over the axis; ``REPLICATED``; or a partial
result that still has to be combined over the axis (``SUM``, ``MAX``, ``MIN``). A dim split by several
axes is split by the lower-numbered mesh axis first (major), so a layout is exactly a tuple of placements
and needs no order.

A *step* changes the placement on one mesh axis by one collective (or by none: slicing is local).
A conversion between layouts is a path of steps. Planner and lowering read the same steps, so what is
priced is what runs.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Layout = tuple[int, ...]

REPLICATED = -1
SUM = -2
MAX = -3
MIN = -4

_WORDS = {REPLICATED: "R", SUM: "P(sum)", MAX: "P(max)", MIN: "P(min)"}
_CODES = {word: code for code, word in _WORDS.items()}


class Collective(enum.Enum):
    """Communication kinds, by the names XLA gives them in HLO; SLICE and FILL are local."""

    ALL_REDUCE = "all-reduce"
    REDUCE_SCATTER = "reduce-scatter"
    ALL_GATHER = "all-gather"
    ALL_TO_ALL = "all-to-all"
    PERMUTE = "collective-permute"
    SLICE = "slice"
    FILL = "fill"  # replicated -> partial sum: keep the value on one device, zeros elsewhere


LOCAL = frozenset({Collective.SLICE, Collective.FILL})


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a conversion: on mesh axis ``axis``, from placement ``src`` to ``dst``."""

    axis: int
    src: int
    dst: int

    @property
    def kind(self) -> Collective:
        """The collective that does it."""
        if self.src <= SUM:
            return Collective.ALL_REDUCE if self.dst == REPLICATED else Collective.REDUCE_SCATTER
        if self.src == REPLICATED:
            return Collective.SLICE if self.dst >= 0 else Collective.FILL
        return Collective.ALL_GATHER if self.dst == REPLICATED else Collective.ALL_TO_ALL

    def apply(self, layout: Layout) -> Layout:
        """The layout after the step."""
        return (*layout[: self.axis], self.dst, *layout[self.axis + 1 :])


def replicated(axes: int) -> Layout:
    """The layout that keeps a whole copy everywhere, on a mesh of ``axes`` axes."""
    return (REPLICATED,) * axes


def shards(layout: Layout, mesh: Sequence[int], rank: int) -> tuple[int, ...]:
    """Number of parts of each tensor dim."""
    parts = [1] * rank
    for placement, size in zip(layout, mesh, strict=True):
        if placement >= 0:
            parts[placement] *= size
    return tuple(parts)


def local_shape(shape: Sequence[int], layout: Layout, mesh: Sequence[int]) -> tuple[int, ...]:
    """Shape of the part on one device."""
    return tuple(n // p for n, p in zip(shape, shards(layout, mesh, len(shape)), strict=True))


def local_size(shape: Sequence[int], layout: Layout, mesh: Sequence[int]) -> int:
    """Elements of the part on one device, for a layout that fits."""
    parts = 1
    for placement, size in zip(layout, mesh, strict=True):
        if placement >= 0:
            parts *= size
    return math.prod(shape) // parts


def fits(shape: Sequence[int], layout: Layout, mesh: Sequence[int]) -> bool:
    """Whether every dim divides evenly into its parts."""
    return all(n % p == 0 for n, p in zip(shape, shards(layout, mesh, len(shape)), strict=True))


def moves(shape: Sequence[int], layout: Layout, mesh: Sequence[int]) -> Iterator[Move]:
    """Every legal step from ``layout``.

    Placing or lifting a split of dim ``d`` on axis ``a`` moves whole chunks only where no later axis splits
    ``d``, so ``a`` must be the minor-most axis of ``d`` before and after.
    """
    for axis, src in enumerate(layout):
        if mesh[axis] == 1 or (src >= 0 and src in layout[axis + 1 :]):
            continue
        if src != REPLICATED:
            yield Move(axis, src, REPLICATED)
        if src in (MAX, MIN):
            continue
        if src == REPLICATED:
            yield Move(axis, src, SUM)
        for dim, size in enumerate(shape):
            if dim == src or dim in layout[axis + 1 :]:
                continue
            target = Move(axis, src, dim)
            if size > 1 and fits(shape, target.apply(layout), mesh):
                yield target


def dims(layout: Layout, rank: int) -> tuple[tuple[int, ...], ...]:
    """Per tensor dim, the mesh axes that split it, major to minor (a PartitionSpec's content)."""
    return tuple(tuple(a for a, p in enumerate(layout) if p == d) for d in range(rank))


def is_partial(layout: Layout) -> bool:
    """Whether some axis still owes a reduction."""
    return any(p <= SUM for p in layout)


def text(layout: Layout) -> str:
    """``S0,R,P(sum)``: dim 0 split over axis 0, replicated over axis 1, a partial sum over axis 2."""
    return ",".join(_WORDS.get(p, f"S{p}") for p in layout)


def parse(words: str) -> Layout:
    """The inverse of :func:`text`.

    Raises:
      ValueError: a placement is not ``S<dim>``, ``R`` or ``P(sum|max|min)``.
    """
    if not words:
        return ()
    return tuple(_CODES[w] if w in _CODES else int(w.removeprefix("S")) for w in words.split(","))
