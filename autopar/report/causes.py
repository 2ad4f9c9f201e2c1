"""What is communicated and why: the causes of a plan's collectives, with or without stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.plan import CollectiveRecord, PlanFacts
from autopar.report.words import axis_words


@dataclass(frozen=True, slots=True)
class Cause:
    """A reason to communicate.

    Attributes:
      phase: ``forward``, ``backward``, ``update``; ``again`` for what runs once more in the backward pass.
      kind: XLA's name of the collective.
      use: what its mesh axis is used for first of all, ``tensor parallel``.
      by_stage: the collectives of each stage that has some; of stage 0 for a plan without stages.
    """

    phase: str
    kind: str
    use: str
    by_stage: dict[int, list[CollectiveRecord]]

    @property
    def most(self) -> list[CollectiveRecord]:
        """The collectives of the stage that spends most time on it."""
        return max(self.by_stage.values(), key=seconds_of)

    @property
    def seconds(self) -> float:
        """Seconds per step of that stage."""
        return seconds_of(self.most)


def causes(plan: PlanFacts) -> list[Cause]:
    """Every cause of a plan, those that take longest first."""
    found: dict[tuple[str, str, str], Cause] = {}
    for stage, phase, use, record in _records(plan):
        cause = found.setdefault((phase, record.kind, use), Cause(phase, record.kind, use, {}))
        cause.by_stage.setdefault(stage, []).append(record)
    return sorted(found.values(), key=lambda cause: -cause.seconds)


def _records(plan: PlanFacts) -> Iterator[tuple[int, str, str, CollectiveRecord]]:
    """(stage, phase, what for, collective)."""
    parts = [(stage.plan, stage.again) for stage in plan.stages] or [(plan, ())]
    for s, (part, again) in enumerate(parts):
        words = axis_words(part)
        for c in part.collectives:
            yield s, c.phase, words.get(c.axes[0], ""), c
        for c in again:
            yield s, "again", words.get(c.axes[0], ""), c


def seconds_of(records: Sequence[CollectiveRecord]) -> float:
    """Seconds per step of collectives together."""
    return sum(c.seconds for c in records)
