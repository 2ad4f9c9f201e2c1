"""Every stage that a partition may have, as arrays; and the least sums over all chains of them.

With ``G_k(i, d)`` the least sum of ``microbatch_s`` over all ways to run units ``i ..`` in ``k`` stages on exactly
``d`` devices, over stages within the thresholds (``microbatch_s <= t``, ``once_s <= o``):

    G_0(units, 0) = 0,   G_0 = inf elsewhere
    G_k(i, d) = min over stages (i, j, shape) of  microbatch_s(i, j, shape, k) + G_{k-1}(j, d - devices(shape))

Each ``k`` is one gather, one addition and one segmented minimum in numpy: a row per stage, a column per ``d``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopar.planner.stages.cost import CostOf


@dataclass(frozen=True)
class Rank:
    """The stages that may stand at one place counted from the end, sorted by ``first``. Arrays of equal length.

    Attributes:
      first, stop, shape: which.
      devices: that it takes, in grains.
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
      grains: devices of the cluster, in grains: the largest number that divides all counts of devices.
      ranks: ``ranks[k - 1]`` are the stages with ``stages_after = k``.
      idle: whether devices may be left over.
    """

    units: int
    grains: int
    ranks: tuple[Rank, ...]
    idle: bool = False

    def under(self, t_s: float, o_s: float, stages: int) -> Table:
        """What partitions into at most so many stages may have with ``microbatch_s <= t_s`` and ``once_s <= o_s``."""
        ranks = tuple(rank.within((rank.microbatch_s <= t_s) & (rank.once_s <= o_s)) for rank in self.ranks[:stages])
        return Table(self.units, self.grains, ranks, self.idle)


def tabulate(units: int, sizes: Sequence[int], devices: int, cost: CostOf, max_stages: int) -> Table:
    """Ask ``cost`` for every stage that some partition can have.

    Args:
      units: length of the chain.
      sizes: devices of each shape.
      devices: in all.
      cost: of a stage.
      max_stages: most stages of a partition.
    """
    grain = math.gcd(devices, *sizes)
    least = min(sizes)
    ranks = []
    for after in range(1, max_stages + 1):
        rows = []
        for first in range(units - after + 1):
            others = after - 1 + (first > 0)  # stages that there must be besides this one
            if others >= max_stages:
                break
            shapes = [s for s, size in enumerate(sizes) if size + others * least <= devices]
            for stop in range(first + 1, units - after + 2) if after > 1 else (units,):
                for shape in shapes:
                    found = cost(first, stop, shape, after)
                    if found is not None:
                        rows.append((first, stop, shape, found.microbatch_s, found.once_s))
        columns = np.array(rows, dtype=float).reshape(-1, 5).T
        first, stop, shape = columns[:3].astype(np.int64)
        taken = np.array(sizes, dtype=np.int64)[shape] // grain
        ranks.append(Rank(first, stop, shape, taken, columns[3], columns[4]))
    return Table(units, devices // grain, tuple(ranks))


def least_sums(table: Table) -> list[np.ndarray]:
    """``G_k`` for ``k = 0 ..``: arrays of seconds, [unit, grains], inf where there is no way."""
    return _chains(table, [rank.microbatch_s for rank in table.ranks], np.add)


def least_maxima(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Per number of stages, from 0: the least possible largest ``microbatch_s``, and that of ``once_s``."""
    columns = ([rank.microbatch_s for rank in table.ranks], [rank.once_s for rank in table.ranks])
    t_s, o_s = (np.array([g[0, -1] for g in _chains(table, column, np.maximum)]) for column in columns)
    return t_s, o_s


def trace_back(table: Table, sums: Sequence[np.ndarray], stages: int) -> list[tuple[int, int, int]]:
    """The chain of so many stages behind ``sums``: (stages after, row in that rank, first unit) of each stage."""
    unit, grains, found = 0, table.grains, []
    for after in range(stages, 0, -1):
        rank = table.ranks[after - 1]
        low, high = np.searchsorted(rank.first, (unit, unit + 1))
        rows = low + np.flatnonzero(rank.devices[low:high] <= grains)
        totals = rank.microbatch_s[rows] + sums[after - 1][rank.stop[rows], grains - rank.devices[rows]]
        row = int(rows[np.argmin(totals)])
        found.append((after, row, unit))
        unit, grains = int(rank.stop[row]), grains - int(rank.devices[row])
    return found


def _chains(table: Table, column: Sequence[np.ndarray], join: np.ufunc) -> list[np.ndarray]:
    """The recurrence of the module docstring, for any monotone way to ``join`` a stage and those after it."""
    ends = np.full((table.units + 1, table.grains + 1), math.inf)
    ends[table.units, slice(None) if table.idle else 0] = 0.0
    found = [ends]
    for rank, value in zip(table.ranks, column, strict=True):
        found.append(_extended(rank, value, found[-1], join))
    return found


def _extended(rank: Rank, value: np.ndarray, after: np.ndarray, join: np.ufunc) -> np.ndarray:
    """``G_k`` from ``after = G_{k-1}``."""
    result = np.full_like(after, math.inf)
    alive = np.flatnonzero(np.isfinite(after).any(axis=1)[rank.stop])
    if not len(alive):
        return result
    grains = after.shape[1] - 1
    padded = np.concatenate((np.full((len(after), grains), math.inf), after), axis=1)
    shifted = np.lib.stride_tricks.sliding_window_view(padded, grains + 1, axis=1)
    totals = shifted[rank.stop[alive], grains - rank.devices[alive]]  # [stage, d]: after[stop, d - devices], a copy
    join(totals, value[alive, None], out=totals)
    first = rank.first[alive]
    starts = np.flatnonzero(np.diff(first, prepend=-1))
    result[first[starts]] = np.minimum.reduceat(totals, starts, axis=0)
    return result
