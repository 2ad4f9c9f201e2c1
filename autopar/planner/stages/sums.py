"""What any run of units costs together, by running sums: the look-ups of the partition search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autopar.planner.stages.cost import StageCost
from autopar.planner.stages.estimate import Estimate
from autopar.planner.stages.remat import Rungs


@dataclass(frozen=True)
class Sums:
    """Running sums over a chain of units, each planned alone on one shape of submesh.

    Lists, as their numbers are read one by one.

    Attributes:
      missing: how many of the first units have no plan.
      microbatch_s, once_s, peak_bytes, kept_bytes: of the first units together, the peak but for what is passing.
      passing_bytes: of units ``i .. j - 1``, the largest: row ``i``, column ``j``.
      rungs: what they may compute again.
    """

    missing: list[float]
    microbatch_s: list[float]
    once_s: list[float]
    peak_bytes: list[float]
    kept_bytes: list[float]
    passing_bytes: list[list[float]]
    rungs: Rungs

    @classmethod
    def of(cls, units: Sequence[Estimate | None]) -> Sums:
        """The sums over ``units``; None is a unit that does not fit."""

        def running(number: Callable[[Estimate], float]) -> list[float]:
            return list(itertools.accumulate((0.0 if e is None else number(e) for e in units), initial=0.0))

        passing = [0.0 if e is None else float(e.passing_bytes) for e in units]
        return cls(
            list(itertools.accumulate((float(e is None) for e in units), initial=0.0)),
            running(lambda e: e.microbatch_s),
            running(lambda e: e.once_s),
            running(lambda e: e.held_bytes),
            running(lambda e: e.kept_bytes),
            [[0.0] * (i + 1) + list(itertools.accumulate(passing[i:], max)) for i in range(len(units))],
            Rungs.of([() if e is None else e.menus[0] for e in units]),
        )

    def again_s(self, first: int, stop: int, in_flight: int, memory_bytes: float) -> float:
        """Seconds of recomputation per micro-batch with which a stage fits; infinite if it does not.

        Args:
          first, stop: its units, ``stop`` excluded.
          in_flight: micro-batches that it holds at a time.
          memory_bytes: of one device.
        """
        if self.missing[stop] > self.missing[first]:
            return math.inf
        room = memory_bytes - self.peak_bytes[stop] + self.peak_bytes[first] - self.passing_bytes[first][stop]
        kept = self.kept_bytes[stop] - self.kept_bytes[first]
        if room >= (in_flight - 1) * kept:
            return 0.0
        if room < 0 or in_flight == 1:
            return math.inf
        return self.rungs.least_s(first, stop, kept - room / (in_flight - 1))

    def cost(self, first: int, stop: int, again_s: float) -> StageCost:
        """What the partition search minimises, with so much recomputation per micro-batch."""
        microbatch_s = self.microbatch_s[stop] - self.microbatch_s[first] + again_s
        return StageCost(max(microbatch_s, 0.0), max(self.once_s[stop] - self.once_s[first], 0.0))


__all__ = ["Sums"]
