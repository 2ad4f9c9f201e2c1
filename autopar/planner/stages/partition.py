"""Cut a chain of units into stages and give each a submesh: the inter-operator level.

What a unit is (a layer, an op) is the caller's business; a stage is consecutive units on one submesh. For stages
``i`` of a partition with costs ``t_i = microbatch_s`` and ``o_i = once_s`` and ``M`` micro-batches,

    minimise   fill * sum_i t_i  +  (M - fill) * max_i t_i  +  max_i o_i                       partition_s
    over       cuts of the chain, a shape for each stage, their number up to max_stages,
    where      the devices of the shapes add up to those of the cluster (or to no more, if ``idle``),
               of a cluster of islands: to all of an island or to none of it,
               each stage fits into memory at its place                        (its cost is not None)

The slowest stage works on ``M`` micro-batches without a pause; while the pipeline fills and drains, it waits for the
others. ``fill`` is the part of their time that it waits: 1 for GPipe and 1F1B (Alpa, OSDI 2022, equation 2:
``sum_i t_i + (M - 1) max_i t_i``), ``1 / v`` with ``v`` interleaved stages per worker (Narayanan et al., SC 2021),
1/3 for ZB-H1 where its three kinds of task take equal time (Qi et al., ICLR 2024). The update follows.

Method. For thresholds ``t`` and ``o``, let ``G(t, o)`` be the least ``sum_i t_i`` over partitions with all
``t_i <= t`` and ``o_i <= o``; dynamic programming finds it (table.least_sums). Alpa tries every ``t`` in turn. Here
boxes of thresholds are searched by branch and bound: a partition whose maxima lie in ``[a, b] x [p, q]`` costs at least

    fill * G(b, q) + (M - fill) * a + p                                                        the bound of a box

since fewer stages are allowed below ``(b, q)`` than at it. The box of the least bound is opened first: the partition
behind ``G(b, q)`` has maxima ``(b', q')``, and is at least as good as all with larger ones; what is left is
``t < b'``, and ``t >= b', o < q'``, each halved. Thresholds and numbers of stages that alone lift a bound to the best
partition found are cut off. The search ends when no bound is below the best, which then is optimal, or within ``gap``
of it. ``G`` falls as thresholds rise, so few of many thousand are tried.

The finalists are the partitions met on the way: each the least sum for its thresholds and its number of stages.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autopar.errors import OptionError
from autopar.mesh import Submesh
from autopar.planner.stages.cost import CostOf, Partition, Span, StageCost, partition_s
from autopar.planner.stages.table import (
    Table,
    from_the_start,
    least_maxima,
    least_sums,
    most_stages,
    tabulate,
    trace_back,
)

_ROUNDING = 1e-12  # relative: sums of one partition in two orders


@dataclass(frozen=True)
class Finalists:
    """What :func:`partition` found.

    Attributes:
      partitions: distinct, the best first.
      bound_s: no partition has a lower objective.
      idle: whether devices may lie idle, because no partition takes all of them.
    """

    partitions: tuple[Partition, ...]
    bound_s: float
    idle: bool = False

    @property
    def best(self) -> Partition:
        """The best."""
        return self.partitions[0]


def partition(
    units: int,
    shapes: Sequence[Submesh],
    devices: int | Sequence[int],
    cost: CostOf,
    microbatches: int,
    *,
    max_stages: int | None = None,
    fill: float = 1.0,
    idle: bool = False,
    gap: float = 0.0,
    keep: int = 8,
) -> Finalists | None:
    """The best ways to cut a chain of units into stages on submeshes.

    Args:
      units: length of the chain.
      shapes: that a stage may have.
      devices: of the cluster, or of each of its islands. The shapes of a partition add up to it; an island has stages
        on all its devices or none.
      cost: of a stage; asked once for each that some partition can have, so it should be a look-up.
      microbatches: of one step.
      max_stages: most stages; None for as many as there are units or devices.
      fill: share of the other stages' time that the slowest waits, by schedule; see above.
      idle: if no partition takes all devices, find one that leaves some idle.
      gap: relative; the best found may be this much above ``bound_s``. 0 is exact.
      keep: most finalists.

    Returns:
      The best partitions and a bound; None if none fits.

    Raises:
      OptionError: a count is not positive, ``fill`` is not in [0, 1] or ``gap`` is negative.

    >>> shapes = [Submesh((1,)), Submesh((2,))]
    >>> found = partition(4, shapes, 4, lambda i, j, s, k: StageCost((j - i) / shapes[s].devices), microbatches=8)
    >>> [(span.first, span.stop, span.shape) for span in found.best.spans], found.best.step_s == found.bound_s
    ([(0, 2, 1), (2, 4, 1)], True)
    """
    islands = (devices,) if isinstance(devices, int) else tuple(devices)
    _check(units, shapes, islands, microbatches, max_stages, fill, gap, keep)
    most = min(units, most_stages(shapes, islands), max_stages or units)
    if most < 1:
        return None
    table = tabulate(units, shapes, islands, cost, most)
    found = _Search(table, microbatches, fill, gap, keep).run()
    if found is None and idle:
        found = _Search(replace(table, idle=True), microbatches, fill, gap, keep).run()
    return found


def even_partition(
    units: int,
    shapes: Sequence[Submesh],
    devices: int | Sequence[int],
    cost: CostOf,
    microbatches: int,
    stages: int,
    *,
    fill: float = 1.0,
    rounds: int = 1,
) -> Partition | None:
    """Equal stages on equal submeshes, as one would set up by hand: the baseline of :func:`partition`.

    Where ``stages`` does not divide the units, the later stages, which hold fewer micro-batches, get one more. Islands
    get their stages in their order.

    Args:
      units, shapes, devices, cost, microbatches, fill: as there.
      stages: how many.
      rounds: stages of each submesh, taken in turn by all submeshes, ``rounds`` times.

    Returns:
      The partition; None if no shapes of ``devices * rounds / stages`` devices fill every island, there are more stages
      than units, or a stage does not fit.
    """
    islands = (devices,) if isinstance(devices, int) else tuple(devices)
    _check(units, shapes, islands, microbatches, stages, fill, 0.0, 1)
    cuts = even_cuts(units, stages)
    found = []
    for workers in even_shapes(shapes, islands, stages, rounds) if stages <= units else ():
        spans = tuple(Span(*cut, shape) for cut, shape in zip(itertools.pairwise(cuts), workers * rounds, strict=True))
        costs = [cost(span.first, span.stop, span.shape, stages - i) for i, span in enumerate(spans)]
        fitting = tuple(c for c in costs if c is not None)
        if len(fitting) == stages:
            found.append(Partition(spans, fitting, partition_s(fitting, microbatches, fill)))
    return min(found, key=_rank, default=None)


def even_cuts(units: int, stages: int) -> list[int]:
    """Where equal stages begin, and the end; the later ones have a unit more where they are not equal.

    >>> even_cuts(7, 3)
    [0, 2, 4, 7]
    """
    length, longer = divmod(units, stages)
    return [length * i + max(0, i - (stages - longer)) for i in range(stages + 1)]


def even_shapes(
    shapes: Sequence[Submesh], devices: Sequence[int], stages: int, rounds: int = 1
) -> Iterator[tuple[int, ...]]:
    """The ways to cut every island into parts of equal numbers of devices, a part for every ``rounds`` stages.

    Returns:
      The shape of each part, as an index, island by island.

    >>> shapes = [Submesh((2,), 0), Submesh((4,), 0), Submesh((2,), 1)]
    >>> list(even_shapes(shapes, [4, 2], 3)), list(even_shapes(shapes, [4, 2], 2))
    ([(0, 0, 2)], [])
    """
    size, over = divmod(sum(devices) * rounds, stages)
    if over or stages % rounds or any(n % size for n in devices):
        return
    same = ([i for i, s in enumerate(shapes) if (s.devices, s.island) == (size, k)] for k in range(len(devices)))
    for chosen in itertools.product(*same):
        yield tuple(shape for shape, n in zip(chosen, devices, strict=True) for _ in range(n // size))


class _Search:
    """Branch and bound over boxes of thresholds; see the module docstring."""

    def __init__(self, table: Table, microbatches: int, fill: float, gap: float, keep: int):
        self.table, self.microbatches, self.fill, self.gap, self.keep = table, microbatches, fill, gap, keep
        self.t_s = np.unique(np.concatenate([rank.microbatch_s for rank in table.ranks]))
        self.o_s = np.unique(np.concatenate([rank.once_s for rank in table.ranks]))
        self.found: dict[tuple[Span, ...], Partition] = {}
        self.boxes: list[tuple[float, int, tuple[int, int, int, int]]] = []
        self.count = itertools.count()
        self.least_s = math.inf  # of what is found, less the rounding
        self.floors_s: dict[int, float] = {}  # number of stages -> a bound of all partitions into so many
        self.traced: set[tuple[int, float]] = set()  # (number of stages, sum): partitions that were noted

    def run(self) -> Finalists | None:
        least_t_s, least_o_s = least_maxima(self.table)
        possible = np.flatnonzero(np.isfinite(least_t_s))
        if not len(possible):
            return None
        least_sum_s = from_the_start(least_sums(self.table))
        for stages in possible:
            slowest_s = (self.microbatches - self.fill) * least_t_s[stages]
            self.floors_s[int(stages)] = float(self.fill * least_sum_s[stages] + slowest_s + least_o_s[stages])
        a, p = int(np.searchsorted(self.t_s, least_t_s.min())), int(np.searchsorted(self.o_s, least_o_s.min()))
        self.push(float(least_sum_s.min()), a, len(self.t_s) - 1, p, len(self.o_s) - 1)
        while self.boxes and self.boxes[0][0] < self.least_s / (1 + self.gap):
            bound_s, _, box = heapq.heappop(self.boxes)
            self.open(*self.trimmed(bound_s, *box))
        partitions = tuple(sorted(self.found.values(), key=_rank)[: self.keep])
        bound_s = self.boxes[0][0] if self.boxes else math.inf
        return Finalists(partitions, bound_s if bound_s < self.least_s else partitions[0].step_s, self.table.idle)

    def bound_s(self, least_sum_s: float, a: int, p: int) -> float:
        return self.fill * least_sum_s + (self.microbatches - self.fill) * self.t_s[a] + self.o_s[p]

    def last_s(self) -> float:
        """Objective of the last finalist so far; inf while there is room for more."""
        if len(self.found) < self.keep:
            return math.inf
        return heapq.nsmallest(self.keep, (found.step_s for found in self.found.values()))[-1]

    def push(self, least_sum_s: float, a: int, b: int, p: int, q: int) -> None:
        """Queue a box of indices into the thresholds, both ends included."""
        if a <= b and p <= q:
            bound_s = float(self.bound_s(least_sum_s, a, p))
            heapq.heappush(self.boxes, (bound_s, next(self.count), (a, b, p, q)))

    def trimmed(self, bound_s: float, a: int, b: int, p: int, q: int) -> tuple[int, int, int, int]:
        """A box without thresholds that alone lift its bound to what is found already."""
        slack_s = self.least_s - bound_s
        if math.isinf(slack_s):
            return a, b, p, q
        if self.microbatches > self.fill:
            t_s = self.t_s[a] + slack_s / (self.microbatches - self.fill)
            b = max(a, min(b, int(np.searchsorted(self.t_s, t_s, side="right")) - 1))
        return a, b, p, max(p, min(q, int(np.searchsorted(self.o_s, self.o_s[p] + slack_s, side="right")) - 1))

    def open(self, a: int, b: int, p: int, q: int) -> None:
        """Solve at the upper corner of a box, and queue what may be better."""
        most = max((stages for stages, floor_s in self.floors_s.items() if floor_s < self.least_s), default=0)
        allowed = self.table.under(self.t_s[b], self.o_s[q], most)
        sums = least_sums(allowed)
        totals = from_the_start(sums)
        stages = int(np.argmin(totals))
        least_sum_s = float(totals[stages])
        if math.isinf(least_sum_s):
            return
        costs = self.note(allowed, sums, stages).costs
        last_s = self.last_s()
        for other in map(int, np.flatnonzero(np.isfinite(totals))):
            if self.floors_s[other] < last_s and (other, totals[other]) not in self.traced:
                self.note(allowed, sums, other)
        b_found = int(np.searchsorted(self.t_s, max(cost.microbatch_s for cost in costs)))
        q_found = int(np.searchsorted(self.o_s, max(cost.once_s for cost in costs)))
        self.halve(least_sum_s, a, min(b, b_found - 1), p, q)
        self.halve(least_sum_s, max(a, b_found), b, p, min(q, q_found - 1))

    def halve(self, least_sum_s: float, a: int, b: int, p: int, q: int) -> None:
        """Queue a box as two, halved in the threshold that matters more."""
        if a > b or p > q:
            return
        t_gain_s = (self.microbatches - self.fill) * (self.t_s[b] - self.t_s[a])
        if t_gain_s >= self.o_s[q] - self.o_s[p]:
            middle = _middle(self.t_s, a, b)
            self.push(least_sum_s, a, middle, p, q)
            self.push(least_sum_s, middle + 1, b, p, q)
        else:
            middle = _middle(self.o_s, p, q)
            self.push(least_sum_s, a, b, p, middle)
            self.push(least_sum_s, a, b, middle + 1, q)

    def note(self, allowed: Table, sums: Sequence[np.ndarray], stages: int) -> Partition:
        """Remember the partition of so many stages behind ``sums``."""
        spans, costs = [], []
        for after, row, first in trace_back(allowed, sums, stages):
            rank = allowed.ranks[after - 1]
            spans.append(Span(first, int(rank.stop[row]), int(rank.shape[row])))
            costs.append(StageCost(float(rank.microbatch_s[row]), float(rank.once_s[row])))
        found = Partition(tuple(spans), tuple(costs), partition_s(costs, self.microbatches, self.fill))
        self.traced.add((stages, float(sums[stages][0].flat[-1])))
        self.least_s = min(self.least_s, found.step_s * (1 - _ROUNDING))
        return self.found.setdefault(found.spans, found)


def _middle(values: np.ndarray, low: int, high: int) -> int:
    """An index in ``low .. high`` near the middle of the values, below ``high`` unless they are equal."""
    if low == high:
        return low
    at = int(np.searchsorted(values, (values[low] + values[high]) / 2, side="right")) - 1
    return min(max(at, low), high - 1)


def _rank(found: Partition) -> tuple[float, int, tuple[Span, ...]]:
    """Better first; of equal ones, the one of fewer stages."""
    return found.step_s, found.stages, found.spans


def _check(
    units: int,
    shapes: Sequence[Submesh],
    islands: Sequence[int],
    microbatches: int,
    stages: int | None,
    fill: float,
    gap: float,
    keep: int,
) -> None:
    counts = {"units": units, "islands": len(islands), "devices": min(islands, default=1), "shapes": len(shapes)}
    counts |= {"microbatches": microbatches, "keep": keep, "stages": 1 if stages is None else stages}
    for what, count in counts.items():
        if count < 1:
            raise OptionError(f"a partition needs 1 or more {what}, not {count}")
    last = max(shape.island for shape in shapes)
    if last >= len(islands):
        raise OptionError(
            f"a shape is of island {last}, counted from 0, but devices of {len(islands)} islands are given"
        )
    if not 0 <= fill <= 1:
        raise OptionError(f"fill = {fill}; it is the share of the other stages' time that a stage waits, 0 to 1")
    if not gap >= 0:
        raise OptionError(f"gap = {gap}; it is how far above the bound the best may be, 0 or more")
