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
      microbatch_s, once_s, held_bytes, kept_bytes, dropped_bytes: of the first units together; the last is what
        they are made to compute again.
      passing_bytes: of units ``i .. j - 1``, the largest: row ``i``, column ``j``.
      again_bytes: what one of these units may have to make again, the largest: likewise.
      rungs: what they may compute again.
      call_s: to call one program of a stage; not in the sums, as units of a stage are called together.
    """

    missing: list[float]
    microbatch_s: list[float]
    once_s: list[float]
    held_bytes: list[float]
    kept_bytes: list[float]
    dropped_bytes: list[float]
    passing_bytes: list[list[float]]
    again_bytes: list[list[float]]
    rungs: Rungs
    call_s: float

    @classmethod
    def of(cls, units: Sequence[Estimate | None]) -> Sums:
        """The sums over ``units``; None is a unit that does not fit."""

        def running(number: Callable[[Estimate], float]) -> list[float]:
            return list(itertools.accumulate((0.0 if e is None else number(e) for e in units), initial=0.0))

        def largest(number: Callable[[Estimate], float]) -> list[list[float]]:
            each = [0.0 if e is None else float(number(e)) for e in units]
            return [[0.0] * (i + 1) + list(itertools.accumulate(each[i:], max)) for i in range(len(each))]

        return cls(
            list(itertools.accumulate((float(e is None) for e in units), initial=0.0)),
            running(lambda e: e.microbatch_s - 2 * e.call_s),
            running(lambda e: e.once_s - e.call_s),
            running(lambda e: e.held_bytes),
            running(lambda e: e.kept_bytes),
            running(lambda e: e.residual_bytes - e.kept_bytes),
            largest(lambda e: e.passing_bytes),
            largest(lambda e: e.residual_bytes - e.leanest_bytes),
            Rungs.of([() if e is None else e.menus[0] for e in units]),
            max((e.call_s for e in units if e is not None), default=0.0),
        )

    def again_s(self, first: int, stop: int, in_flight: int, memory_bytes: float, *, spares: bool) -> float:
        """Seconds of recomputation per micro-batch with which a stage fits; infinite if it does not.

        Args:
          first, stop: its units, ``stop`` excluded.
          in_flight: micro-batches that it holds at a time.
          memory_bytes: of one device.
          spares: of what the micro-batch that is computed does not keep, that of one unit is there at a time.
        """
        if self.missing[stop] > self.missing[first]:
            return math.inf
        kept, again = self.kept_bytes[stop] - self.kept_bytes[first], self.again_bytes[first][stop]
        held = self.held_bytes[stop] - self.held_bytes[first] + self.passing_bytes[first][stop]
        if spares:
            held -= max(self.dropped_bytes[stop] - self.dropped_bytes[first] - again, 0.0)
        over = held + (in_flight - 1) * kept - memory_bytes
        if over <= 0:
            return 0.0
        if spares:
            return self.rungs.least_s(first, stop, (over + again) / in_flight)
        return self.rungs.least_s(first, stop, over / (in_flight - 1)) if in_flight > 1 else math.inf

    def cost(self, first: int, stop: int, again_s: float) -> StageCost:
        """What the partition search minimises, with so much recomputation per micro-batch."""
        microbatch_s = self.microbatch_s[stop] - self.microbatch_s[first] + again_s
        once_s = self.once_s[stop] - self.once_s[first]
        return StageCost(max(microbatch_s, 0.0) + 2 * self.call_s, max(once_s, 0.0) + self.call_s)


__all__ = ["Sums"]
