"""Where a step may be cut: its forward pass as a chain of units.

Between two units little passes on: no more than :data:`_NARROW` times the least that passes anywhere near; or so much
besides what is alive over much of the work, if that makes smaller units. In a Transformer these are the points where
only the residual stream is alive (and, in a decoder, the encoder's output).
Cuts that stand at the same place of repeated code (a layer's first line, reached from the same call) are taken or left
together, so that equal layers become equal units; of layers that are too many, every second or third cut is taken.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopar.ir import Op, Step
from autopar.partition.likeness import ops_digest
from autopar.partition.loop_stages import forward_ops
from autopar.partition.timing import Timing

BOUNDARY = "autopar.stage_boundary"
"""Name of the scope around what :func:`autopar.stage_boundary` marks."""

_NARROW = 1.5
_NEAR = 1 / 8  # of the work, to either side
_LONG = 1 / 4  # of the work: what is alive longer passes wherever one cuts
_LITTLE = 4  # less than a fourth of an equal share of the work is too little for a unit
_EDGES = 0.02  # of the work: what passes before the first and after the last layer says nothing about those between


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of the forward pass.

    Attributes:
      begin: position of its first op among the forward ops.
      flops: floating-point operations of its forward pass, of the whole batch.
      enters_bytes: bytes of a whole batch that pass from earlier units into it or past it.
      like: units of equal digest do the same work on arrays of the same shapes.
    """

    begin: int
    flops: float
    enters_bytes: int
    like: str


def find_units(step: Step, timing: Timing, most: int = 72) -> tuple[Unit, ...]:
    """Cut the forward pass into at most ``most`` units; if the user marked where stages may begin, just there.

    Args:
      step: the step.
      timing: when its ops run.
      most: how many units at most.
    """
    ops = forward_ops(step, timing)
    if not ops:
        return ()
    flops = [_flops(op) for op in ops]
    crossing = _crossing_bytes(step, ops, flops, math.inf)
    passing = _crossing_bytes(step, ops, flops, _LONG)
    cuts = _marked(ops) or _smallest([_cuts(ops, counted, flops, most) for counted in (crossing, passing)], flops)
    begins = [0, *cuts]
    bounds = itertools.pairwise([*begins, len(ops)])
    return tuple(Unit(a, sum(flops[a:b]), crossing[a], ops_digest(step, ops[a:b])) for a, b in bounds)


def joints(step: Step, timing: Timing, units: Sequence[Unit]) -> frozenset[int]:
    """Ids of the forward ops whose results pass from one unit into a later one: what rematerialisation keeps."""
    ops = forward_ops(step, timing)
    begins = [u.begin for u in units]
    unit_of = {v: bisect.bisect(begins, k) for k, op in enumerate(ops) for v in op.results}
    maker = {v: op.id for op in ops for v in op.results}
    return frozenset(
        maker[v]
        for k, op in enumerate(ops)
        for v in op.operands
        if v in unit_of and unit_of[v] < bisect.bisect(begins, k)
    )


def _marked(ops: Sequence[Op]) -> list[int]:
    """Where the user's marks stand."""
    return [k for k, op in enumerate(ops) if k > 0 and BOUNDARY in op.where.scope.split("/")]


def _flops(op: Op) -> float:
    inner = sum(_flops(o) for region in op.regions for o in region.ops)
    return op.rule.flops + inner * (op.loop.length if op.loop is not None else 1)


def _crossing_bytes(step: Step, ops: Sequence[Op], flops: Sequence[float], long: float) -> list[int]:
    """Per position, bytes made by earlier ops that the op there or a later one reads.

    Args:
      step: the step.
      ops: of the forward pass.
      flops: of each.
      long: what is alive over more than so much of the work is left out.
    """
    made = {v: k for k, op in enumerate(ops) for v in op.results}
    last = {v: k for k, op in enumerate(ops) for v in op.operands if v in made}
    done = list(itertools.accumulate(flops, initial=0.0))
    change = [0] * (len(ops) + 1)
    for v, until in last.items():
        if done[until] - done[made[v] + 1] <= long * done[-1]:
            nbytes = step.graph.values[v].nbytes
            change[made[v] + 1] += nbytes
            change[until + 1] -= nbytes
    return list(itertools.accumulate(change))[: len(ops)]


def _cuts(ops: Sequence[Op], crossing: Sequence[int], flops: Sequence[float], most: int) -> list[int]:
    total = sum(flops)
    done = list(itertools.accumulate(flops, initial=0.0))
    inner = [k for k in range(1, len(ops)) if _EDGES * total < done[k] < (1 - _EDGES) * total and crossing[k]]
    if not inner or not total:
        return []
    narrow = [_NARROW * least for least in _least_near(crossing, done, inner, _NEAR * total)]
    places: list[int] = []
    for k in range(1, len(ops)):
        if crossing[k] > narrow[k] or min(done[k], total - done[k]) * _LITTLE * most < total:
            continue
        if places and (done[k] - done[places[-1]]) * _LITTLE * most < total:
            # Of neighbouring places with little work between them, the narrowest, and of those the first.
            if crossing[k] < crossing[places[-1]]:
                places[-1] = k
            continue
        places.append(k)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for k in places:
        # Losses that layers leave for the end let a few bytes more pass after each: still the same place.
        groups.setdefault((ops[k].where.stack, ops[k].primitive, f"{crossing[k]:.3g}"), []).append(k)
    # The most repeated first; among equals the one that leaves the least before its first cut.
    ordered = sorted(groups.values(), key=lambda g: (-len(g), g[0]))
    every = range(1, 1 + max(map(len, ordered), default=0))
    return _smallest([_chosen([group[::n] for group in ordered], most) for n in every], flops)


def _chosen(groups: Iterable[list[int]], most: int) -> list[int]:
    """Groups that make fewer than ``most`` cuts together, whole ones only, the first first."""
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) < most:
            chosen.update(group)
    return sorted(chosen)


def _smallest(tried: Sequence[list[int]], flops: Sequence[float]) -> list[int]:
    """The first of those cuts that leave the least work to the largest unit."""
    done = list(itertools.accumulate(flops, initial=0.0))

    def largest(cuts: Sequence[int]) -> float:
        return max(done[b] - done[a] for a, b in itertools.pairwise([0, *cuts, len(flops)]))

    return min(tried, key=largest, default=[])


def _least_near(crossing: Sequence[int], done: Sequence[float], inner: Sequence[int], reach: float) -> list[int]:
    """Per position, the least that passes at any of ``inner`` within ``reach`` of work."""
    places = [done[k] for k in inner]
    found = []
    for at in done[: len(crossing)]:
        near = inner[bisect.bisect_left(places, at - reach) : bisect.bisect_right(places, at + reach)]
        found.append(min(crossing[k] for k in near or inner))
    return found
