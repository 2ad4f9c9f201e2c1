"""What an explanation says, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.plan import PlanFacts


@dataclass(frozen=True, slots=True)
class Figures:
    """What a plan costs.

    Attributes:
      step_s, compute_s, communication_s: predicted seconds per step.
      collective_bytes: bytes handed to collectives per device and step.
      peak_bytes: predicted peak memory of one device.
    """

    step_s: float
    compute_s: float
    communication_s: float
    collective_bytes: int
    peak_bytes: int

    @classmethod
    def of(cls, plan: PlanFacts) -> Figures:
        """The figures of a plan."""
        return cls(plan.step_s, plan.compute_s, plan.communication_s, plan.collective_bytes, plan.peak_bytes)


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to lay out what was asked about.

    Attributes:
      words: the layout, as a hint takes it.
      figures: of the best plan with it, on the same mesh; None where there is none.
      excluded: why there is none.
      by: what excludes it: ``dims`` (they do not divide), ``rule`` (no op can read it so), ``strategy``, ``hint``,
        ``memory`` or ``time``; empty if nothing does.
      status: of the proof of the plan, as in :class:`autopar.plan.Certificate`.
      short_bytes: excluded by memory: how much more than the budget the smallest plan found with it needs.
    """

    words: str
    figures: Figures | None
    excluded: str = ""
    by: str = ""
    status: str = ""
    short_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class MoreMemory:
    """What a larger budget of memory would change, found by planning without one and again with just enough.

    Attributes:
      words: the layout that would be chosen.
      extra_bytes: by how much the budget must be larger.
      memory_bytes: the larger budget.
      figures: of the plan within it.
    """

    words: str
    extra_bytes: float
    memory_bytes: float
    figures: Figures


@dataclass(frozen=True)
class ExplanationFacts:
    """Why a part of the model lies as it does.

    Attributes:
      asked: the pattern.
      names: of the arguments, or the ops, that it names.
      shape, dtype: of the first of them.
      mesh: names and sizes of the mesh's axes.
      chosen: the layouts that the plan has for them, in words; several if they differ.
      used: how the ops of the part divide their work, in words.
      figures: of the plan; of a stage, of its program over all micro-batches.
      alternatives: the fastest first, then what is excluded.
      left_out: so many other layouts were not tried.
      budget_bytes: memory of one device that the plan may take.
      more: what more memory would change; None if nothing.
      stage: number of the stage that holds the part; None without stages.
      notes: what else there is to say.
    """

    asked: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    mesh: tuple[tuple[str, int], ...]
    chosen: tuple[str, ...]
    used: tuple[str, ...]
    figures: Figures
    alternatives: tuple[Alternative, ...]
    left_out: int
    budget_bytes: float
    more: MoreMemory | None
    stage: int | None = None
    notes: tuple[str, ...] = ()

    def alternative(self, words: str) -> Alternative:
        """The alternative of these words.

        Raises:
          KeyError: there is none.
        """
        for found in self.alternatives:
            if found.words == words:
                return found
        raise KeyError(f"{words!r}; there are {', '.join(repr(a.words) for a in self.alternatives)}")


@dataclass(frozen=True)
class WhatIfFacts:
    """A plan, and the plan that other options would give.

    Attributes:
      changed: the options that differ, as words.
      before: the plan as it is.
      after: the other plan; None if there is none.
      refused: why there is none.
    """

    changed: Mapping[str, str]
    before: PlanFacts = field(repr=False)
    after: PlanFacts | None = field(repr=False)
    refused: str = ""
