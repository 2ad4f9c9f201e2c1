"""As little recomputation as fits: which units of a stage compute again what they do not keep.

Every unit has a *menu*: ways to be treated, each freeing bytes of every micro-batch that waits, for seconds of
recomputation in each. One choice per unit, enough bytes freed, the least seconds: a knapsack with one item of each
menu. :func:`least_again` solves it exactly; :class:`Rungs` answers in a few look-ups for any run of units, by taking
the steps of all menus in the order of seconds per byte, no more of the last than needed.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.ir import NONE

_STATES = 1000  # mixes of some of the units that are followed up; more are thinned out


@dataclass(frozen=True, slots=True)
class Again:
    """One way to treat a unit.

    Attributes:
      remat: its name.
      freed_bytes: that every waiting micro-batch keeps less, on one device; more than 0.
      again_s: seconds of recomputation, per micro-batch.
    """

    remat: str
    freed_bytes: int
    again_s: float


Menu = tuple[Again, ...]
"""The ways to treat a unit, besides keeping everything."""

State = tuple[float, float, tuple[str, ...]]  # bytes freed, seconds, how the units so far are treated


def least_again(menus: Sequence[Menu], need_bytes: float) -> tuple[str, ...] | None:
    """How to treat each unit so that enough is freed in the least seconds; None if all together free too little.

    Exact unless more than a thousand mixes of the first units are better than each other in bytes or seconds.

    Args:
      menus: of the units.
      need_bytes: to be freed of every waiting micro-batch.

    >>> menu = (Again("attention", 4, 1.0), Again("full", 6, 3.0))
    >>> least_again([menu, menu, menu], 9)
    ('attention', 'attention', 'attention')
    >>> least_again([menu, menu, menu], 19) is None
    True
    """
    states: list[State] = [(0.0, 0.0, ())]
    for menu in menus:
        kept = Again(NONE, 0, 0.0)
        states = _best([
            (min(freed + a.freed_bytes, max(need_bytes, 0.0)), again_s + a.again_s, (*remat, a.remat))
            for freed, again_s, remat in states
            for a in (kept, *menu)
        ])  # fmt: skip
    fitting = [state for state in states if state[0] >= need_bytes]
    return min(fitting, key=lambda state: state[1])[2] if fitting else None


def _best(states: list[State]) -> list[State]:
    """Those that no other beats in both bytes and seconds."""
    found: list[State] = []
    for state in sorted(states, key=lambda s: (-s[0], s[1])):
        if not found or state[1] < found[-1][1]:
            found.append(state)
    if len(found) <= _STATES:
        return found
    step = (len(found) - 1) / (_STATES - 1)
    return [found[round(k * step)] for k in range(_STATES)]


def steps(menu: Menu) -> tuple[tuple[int, float], ...]:
    """The bytes and seconds of each step from keeping everything to freeing most, ever dearer per byte.

    Ways that some mix of others beats are left out.

    >>> steps((Again("attention", 4, 1.0), Again("full", 6, 3.0)))
    ((4, 1.0), (2, 2.0))
    >>> steps((Again("attention", 1, 2.0), Again("full", 6, 3.0)))
    ((6, 3.0),)
    """
    corners: list[tuple[int, float]] = [(0, 0.0)]
    for point in sorted((a.freed_bytes, a.again_s) for a in menu):
        while len(corners) > 1 and _dearer(corners[-2], corners[-1], point):
            corners.pop()
        if point[0] > corners[-1][0]:
            corners.append(point)
    return tuple((b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(corners))


def _dearer(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether a byte on the way from ``a`` to ``b`` costs at least what it costs from ``a`` to ``c``."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


@dataclass(frozen=True)
class Rungs:
    """The steps of the menus of a chain of units, the cheapest per byte first, equal ones together.

    Attributes:
      step_bytes, step_s: of one step of each rung.
      freed_bytes, again_s: per rung, running sums over the units of it and all cheaper ones.
    """

    step_bytes: tuple[int, ...]
    step_s: tuple[float, ...]
    freed_bytes: tuple[tuple[float, ...], ...]
    again_s: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, menus: Sequence[Menu]) -> Rungs:
        """The rungs of a chain."""
        taken = [steps(menu) for menu in menus]
        rungs = sorted({step for those in taken for step in those}, key=lambda step: (step[1] / step[0], step))
        freed: list[tuple[float, ...]] = []
        again: list[tuple[float, ...]] = []
        for r in range(len(rungs)):
            cheap = set(rungs[: r + 1])
            freed.append(_running([sum(float(s[0]) for s in those if s in cheap) for those in taken]))
            again.append(_running([sum(s[1] for s in those if s in cheap) for those in taken]))
        return cls(tuple(s[0] for s in rungs), tuple(s[1] for s in rungs), tuple(freed), tuple(again))

    def least_s(self, first: int, stop: int, need_bytes: float) -> float:
        """Seconds per micro-batch to free so much in units ``first .. stop - 1``; infinite if there is not so much."""
        if need_bytes <= 0:
            return 0.0

        def freed(r: int) -> float:
            return self.freed_bytes[r][stop] - self.freed_bytes[r][first]

        rung = bisect.bisect_left(range(len(self.step_bytes)), need_bytes, key=freed)
        if rung == len(self.step_bytes):
            return math.inf
        before_bytes = freed(rung - 1) if rung else 0.0
        before_s = self.again_s[rung - 1][stop] - self.again_s[rung - 1][first] if rung else 0.0
        return before_s + math.ceil((need_bytes - before_bytes) / self.step_bytes[rung]) * self.step_s[rung]


def _running(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(itertools.accumulate(numbers, initial=0.0))


__all__ = ["Again", "Menu", "Rungs", "least_again", "steps"]
