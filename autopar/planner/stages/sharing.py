"""What searches for stages on several clusters share: the plans of units on the shapes of submesh that all have.

What a unit costs on two hosts is the same whether the cluster has four hosts or forty. Only what memory is worth
depends on the cluster, and so do the prices at which units are planned; where searches share, that is rounded to a
power of ten, so that prices meet. A plan from a search that shares may therefore differ a little from one that does
not: it recomputes or spreads a little more or less where memory is short.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable

from autopar.ir import Step
from autopar.partition import StageSection
from autopar.planner.one_mesh import Prepared
from autopar.planner.options import Options
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.stages.section import Section

Alone = tuple[Step, StageSection, Prepared]
"""A unit as a step of its own, what it does, and what programs of it begin with."""


class Shared:
    """Units that were planned, for searches with the same step and options on several clusters.

    Args:
      problem: the step, in its micro-batches.
      options: of every search.

    Attributes:
      alone: number of a unit -> it as a step of its own.
    """

    def __init__(self, problem: StagedProblem, options: Options) -> None:
        self.problem, self.options = problem, options
        self.alone: dict[int, Alone] = {}
        self._sections: dict[Hashable, Section] = {}
        self._lock = threading.Lock()

    def section(self, key: Hashable, make: Callable[[], Section]) -> Section:
        """The section of a unit on a submesh, made once."""
        found = self._sections.get(key)
        if found is None:
            made = make()
            with self._lock:
                found = self._sections.setdefault(key, made)
        return found

    def forget(self) -> None:
        """Let the programs of all units go. They are asked for at few prices, so the programs are seldom missed."""
        for section in self._sections.values():
            section.forget()


def rounded(price: float) -> float:
    """A price of memory, seconds per GiB, rounded so that other clusters ask for the same.

    >>> rounded(0.0), rounded(0.004), rounded(0.1 * 0.02)
    (0.0, 0.01, 0.001)
    """
    return 10.0 ** round(math.log10(price)) if price > 0 else price


__all__ = ["Alone", "Shared", "rounded"]
