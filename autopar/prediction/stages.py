"""Cutting the chain of units into stages."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence

from autopar.errors import OptionError
from autopar.prediction.work import Unit

Stage = tuple[Unit, ...]


def cut(
    units: Sequence[Unit], stages: int, split: str | tuple[int, ...], seconds: Callable[[Unit], float]
) -> tuple[Stage, ...]:
    """The units of each stage.

    Args:
      units: first to last.
      stages: how many.
      split: ``even`` gives each stage as many layers (what stands before the first goes with it,
        what comes after the last stays with that), and numbers of layers give it those; ``balanced`` makes the slowest
        stage as fast as can be, between any two units; ``flops`` does so by arithmetic alone.
      seconds: of a unit, for ``balanced``.

    Raises:
      OptionError: layers do not divide, or are not as many as the numbers say.
    """
    if split == "flops":
        return tuple(tuple(units[a:b]) for a, b in by_share([unit.flops for unit in units], stages))
    if split == "balanced":
        return tuple(tuple(units[a:b]) for a, b in balanced(list(map(seconds, units)), stages))
    begins = [i for i, unit in enumerate(units) if unit.starts]
    counts = _even(len(begins), stages) if isinstance(split, str) else split
    if len(counts) != stages or sum(counts) != len(begins):
        raise OptionError(
            f"split={split} gives {sum(counts)} layers to {len(counts)} stages; there are {len(begins)} layers and "
            f"{stages} stages"
        )
    first = list(itertools.accumulate(counts[:-1]))
    bounds = [0, *(begins[i] for i in first), len(units)]
    return tuple(tuple(units[a:b]) for a, b in itertools.pairwise(bounds))


def _even(layers: int, stages: int) -> tuple[int, ...]:
    if layers % stages:
        raise OptionError(
            f"{layers} layers do not divide among {stages} stages; take a divisor, or split='balanced' or 'flops', or "
            "give the layers of each stage"
        )
    return (layers // stages,) * stages


def balanced(costs: Sequence[float], stages: int) -> tuple[tuple[int, int], ...]:
    """Bounds of at most so many runs of ``costs`` whose largest sum is least; runs that are not needed are empty.

    Bisection on the largest sum, each time filling runs from the first.

    >>> balanced([3, 1, 1, 1, 3], 3)
    ((0, 1), (1, 4), (4, 5))
    """
    low, high = max(max(costs), sum(costs) / stages), float(sum(costs))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(costs, middle)) <= stages else (middle, high)
    bounds = _filled(costs, high)
    return tuple(bounds + [(len(costs), len(costs))] * (stages - len(bounds)))


def _filled(costs: Sequence[float], most: float) -> list[tuple[int, int]]:
    bounds, first, held = [], 0, 0.0
    for i, cost in enumerate(costs):
        if held + cost > most * (1 + 1e-12) and i > first:
            bounds.append((first, i))
            first, held = i, 0.0
        held += cost
    return [*bounds, (first, len(costs))]


def by_share(costs: Sequence[float], stages: int) -> tuple[tuple[int, int], ...]:
    """Bounds of runs by cumulative cost, as GPipe's authors cut (lingvo, ``PartitionSequentialLayers``).

    What comes up to share x of the total, itself included, goes to run floor(x stages).

    >>> by_share([3, 1, 1, 1, 3], 3)
    ((0, 0), (0, 3), (3, 5))
    """
    until = list(itertools.accumulate(costs))
    runs = [min(int(total / until[-1] * stages), stages - 1) for total in until]
    starts = [bisect.bisect_left(runs, run) for run in range(stages + 1)]
    return tuple(itertools.pairwise(starts))
