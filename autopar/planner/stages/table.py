"""Every stage that a partition may have, as arrays; and the least sums over all chains of them.

With ``G_k(i, d)`` the least sum of ``microbatch_s`` over all ways to run units ``i ..`` in ``k`` stages on ``d``
devices, a number for each island, over stages within the thresholds (``microbatch_s <= t``, ``once_s <= o``):

    G_0(units, d) = 0   if each island has no devices left, or all of its own
    G_0 = inf           elsewhere
    G_k(i, d) = min over stages (i, j, shape) of  microbatch_s(i, j, shape, k) + G_{k-1}(j, d - devices(shape))

Each ``k`` is one gather, one addition and one segmented minimum in numpy: a row per stage, a column per ``d``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.mesh import Submesh
from autopar.planner.stages.cost import CostOf

_AT_ONCE = 1 << 22  # numbers in one block of rows and columns: as many as caches and memory like


@dataclass(frozen=True)
class Rank:
    """The stages that may stand at one place counted from the end, sorted by ``first``. Arrays of equal length.

    Attributes:
      first, stop, shape: which.
      devices: that it takes, in grains; a row per stage, a column per island.
      microbatch_s, once_s: its cost.
    """

    first: np.ndarray
    stop: np.ndarray
    shape: np.ndarray
    devices: np.ndarray
    microbatch_s: np.ndarray
    once_s: np.ndarray

    def within(self, keep: np.ndarray) -> Rank:
        """Those that a mask keeps."""
        return Rank(
            self.first[keep],
            self.stop[keep],
            self.shape[keep],
            self.devices[keep],
            self.microbatch_s[keep],
            self.once_s[keep],
        )


@dataclass(frozen=True)
class Table:
    """All stages.

    Attributes:
      units: length of the chain.
      grains: devices of each island, in grains: the largest number that divides all its counts of devices.
      ranks: ``ranks[k - 1]`` are the stages with ``stages_after = k``.
      idle: whether any devices may be left over.
    """

    units: int
    grains: tuple[int, ...]
    ranks: tuple[Rank, ...]
    idle: bool = False

    def under(self, t_s: float, o_s: float, stages: int) -> Table:
        """What partitions into at most so many stages may have with ``microbatch_s <= t_s`` and ``once_s <= o_s``."""
        ranks = tuple(rank.within((rank.microbatch_s <= t_s) & (rank.once_s <= o_s)) for rank in self.ranks[:stages])
        return Table(self.units, self.grains, ranks, self.idle)


def most_stages(shapes: Sequence[Submesh], devices: Sequence[int]) -> int:
    """The most stages that islands of so many devices have room for.

    >>> most_stages([Submesh((1,), 0), Submesh((4,), 0), Submesh((2,), 1)], [4, 5])
    6
    """
    least = {k: min(s.devices for s in same) for k, same in _by_island(shapes).items()}
    return sum(devices[k] // size for k, size in least.items())


def tabulate(units: int, shapes: Sequence[Submesh], devices: Sequence[int], cost: CostOf, max_stages: int) -> Table:
    """Ask ``cost`` for every stage that some partition can have.

    Args:
      units: length of the chain.
      shapes: that a stage may have.
      devices: of each island.
      cost: of a stage.
      max_stages: most stages of a partition.
    """
    same = _by_island(shapes)
    grain = [math.gcd(n, *(s.devices for s in same.get(k, ()))) for k, n in enumerate(devices)]
    taken = np.zeros((len(shapes), len(devices)), dtype=np.int64)
    for s, submesh in enumerate(shapes):
        taken[s, submesh.island] = submesh.devices // grain[submesh.island]
    room = [_room_beside(submesh, shapes, devices) for submesh in shapes]
    ranks = []
    for after in range(1, max_stages + 1):
        rows = []
        for first in range(units - after + 1):
            others = after - 1 + (first > 0)  # stages that there must be besides this one
            if others >= max_stages:
                break
            possible = [s for s in range(len(shapes)) if room[s] >= others]
            for stop in range(first + 1, units - after + 2) if after > 1 else (units,):
                for s in possible:
                    found = cost(first, stop, s, after)
                    if found is not None:
                        rows.append((first, stop, s, found.microbatch_s, found.once_s))
        columns = np.array(rows, dtype=float).reshape(-1, 5).T
        first, stop, shape = columns[:3].astype(np.int64)
        ranks.append(Rank(first, stop, shape, taken[shape], columns[3], columns[4]))
    return Table(units, tuple(n // g for n, g in zip(devices, grain, strict=True)), tuple(ranks))


def _by_island(shapes: Sequence[Submesh]) -> dict[int, list[Submesh]]:
    return {k: [s for s in shapes if s.island == k] for k in sorted({s.island for s in shapes})}


def _room_beside(shape: Submesh, shapes: Sequence[Submesh], devices: Sequence[int]) -> int:
    """How many stages there is room for besides one of a shape; negative where there is none for itself."""
    left = [n - shape.devices * (k == shape.island) for k, n in enumerate(devices)]
    return most_stages(shapes, left) if min(left) >= 0 else -1


def least_sums(table: Table) -> list[np.ndarray]:
    """``G_k`` for ``k = 0 ..``: arrays of seconds, [unit, grains of an island, ...], inf where there is no way."""
    return _chains(table, [rank.microbatch_s for rank in table.ranks], np.add)


def from_the_start(found: Sequence[np.ndarray]) -> np.ndarray:
    """Per number of stages, from 0, what :func:`least_sums` says of the whole chain on all devices."""
    return np.array([g[0].flat[-1] for g in found])


def least_maxima(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Per number of stages, from 0: the least possible largest ``microbatch_s``, and that of ``once_s``."""
    columns = ([rank.microbatch_s for rank in table.ranks], [rank.once_s for rank in table.ranks])
    t_s, o_s = (from_the_start(_chains(table, column, np.maximum)) for column in columns)
    return t_s, o_s


def trace_back(table: Table, sums: Sequence[np.ndarray], stages: int) -> list[tuple[int, int, int]]:
    """The chain of so many stages behind ``sums``: (stages after, row in that rank, first unit) of each stage."""
    unit, grains, found = 0, np.array(table.grains), []
    for after in range(stages, 0, -1):
        rank = table.ranks[after - 1]
        low, high = np.searchsorted(rank.first, (unit, unit + 1))
        rows = low + np.flatnonzero((rank.devices[low:high] <= grains).all(axis=1))
        totals = rank.microbatch_s[rows] + sums[after - 1][(rank.stop[rows], *(grains - rank.devices[rows]).T)]
        row = int(rows[np.argmin(totals)])
        found.append((after, row, unit))
        unit, grains = int(rank.stop[row]), grains - rank.devices[row]
    return found


def _chains(table: Table, column: Sequence[np.ndarray], join: np.ufunc) -> list[np.ndarray]:
    """The recurrence of the module docstring, for any monotone way to ``join`` a stage and those after it."""
    ends = np.full((table.units + 1, *(n + 1 for n in table.grains)), math.inf)
    if table.idle:
        ends[table.units] = 0.0
    else:
        ends[table.units][np.ix_(*([0, n] for n in table.grains))] = 0.0
    found = [ends]
    for rank, value in zip(table.ranks, column, strict=True):
        found.append(_extended(rank, value, found[-1], join))
    return found


def _extended(rank: Rank, value: np.ndarray, after: np.ndarray, join: np.ufunc) -> np.ndarray:
    """``G_k`` from ``after = G_{k-1}``."""
    result = np.full_like(after, math.inf)
    axes = tuple(range(1, after.ndim))
    alive = np.flatnonzero(np.isfinite(after).any(axis=axes)[rank.stop])
    if not len(alive):
        return result
    grains = np.array(after.shape[1:]) - 1
    padded = np.full((len(after), *(2 * grains + 1)), math.inf)
    padded[(slice(None), *(slice(n, None) for n in grains))] = after
    shifted = np.lib.stride_tricks.sliding_window_view(padded, after.shape[1:], axis=axes)
    for rows, starts in _blocks(rank.first[alive], result[0].size):
        stages = alive[rows]
        # [stage, d]: after[stop, d - devices], a copy
        totals = shifted[(rank.stop[stages], *(grains - rank.devices[stages]).T)]
        join(totals, value[stages].reshape(-1, *(1 for _ in axes)), out=totals)
        result[rank.first[stages[starts]]] = np.minimum.reduceat(totals, starts, axis=0)
    return result


def _blocks(first: np.ndarray, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows in blocks of moderate size, each with all rows of its first units; and where, in the block, these begin."""
    starts = np.flatnonzero(np.diff(first, prepend=-1))
    marks = np.arange(0, len(first), max(1, _AT_ONCE // width))
    cuts = np.unique(starts[np.searchsorted(starts, marks, side="right") - 1])
    for low, high in itertools.pairwise((*cuts, len(first))):
        yield slice(low, high), starts[(starts >= low) & (starts < high)] - low
