"""What XLA compiled, beside what was planned: collectives by kind, and peak memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax

from autopar.lower.hlo import Memory, hlo_collectives, memory
from autopar.plan import CollectiveRecord, PlanFacts
from autopar.units import bytes_text

UNDER = 0.10
"""Share by which a program may need more memory than predicted before the user is told."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One kind of collective: executions and bytes per device and step, planned and compiled."""

    kind: str
    planned_count: int
    planned_bytes: int
    compiled_count: int
    compiled_bytes: int

    @property
    def agrees(self) -> bool:
        """Equal counts, and bytes within 1%."""
        close = abs(self.planned_bytes - self.compiled_bytes) <= 0.01 * max(self.planned_bytes, self.compiled_bytes)
        return self.planned_count == self.compiled_count and close


@dataclass(frozen=True)
class _Beside:
    """What was compiled beside what was planned."""

    rows: tuple[AuditRow, ...]
    planned_peak_bytes: int
    compiled_peak_bytes: int

    @property
    def agrees(self) -> bool:
        """Whether every collective runs as planned."""
        return all(row.agrees for row in self.rows)

    @property
    def peak_ratio(self) -> float:
        """Predicted over compiled peak."""
        return self.planned_peak_bytes / max(self.compiled_peak_bytes, 1)


@dataclass(frozen=True)
class Audit(_Beside):
    """The compiled step beside its plan.

    Attributes:
      rows: per kind of collective.
      planned_peak_bytes: predicted peak of one device.
      compiled_peak_bytes: XLA's: arguments + outputs - aliased + temporaries.
      memory: XLA's figures in full.
    """

    memory: Memory


@dataclass(frozen=True)
class StageAudit(_Beside):
    """The compiled programs of a pipeline's stage beside its plan.

    Attributes:
      rows: per kind of collective, over all micro-batches and what runs once.
      planned_peak_bytes: predicted peak of one device, with all micro-batches in flight and all stages that share it.
      compiled_peak_bytes: what the stage's programs hold between them, and XLA's temporaries on top.
      memory: XLA's figures in full, by program.
    """

    memory: Mapping[str, Memory]


@dataclass(frozen=True)
class PipelineAudit:
    """A compiled pipeline beside its plan.

    Attributes:
      stages: each stage's audit, in order.
    """

    stages: tuple[StageAudit, ...]

    @property
    def agrees(self) -> bool:
        """Whether every collective of every stage runs as planned."""
        return all(stage.agrees for stage in self.stages)


def memory_shortfall(plan: PlanFacts, compiled: jax.stages.Compiled) -> str | None:
    """What to tell the user if the compiled program needs more memory than predicted, or None."""
    found, predicted = memory(compiled).peak_bytes, plan.peak_bytes
    if found <= (1 + UNDER) * predicted:
        return None
    return (
        f"{plan.name} needs {bytes_text(found)} on each device, {found / max(predicted, 1) - 1:.0%} more than the "
        f"{bytes_text(predicted)} that were predicted. If it does not fit, plan with a smaller "
        "Options(memory_bytes=...)."
    )


def audit(plan: PlanFacts, compiled: jax.stages.Compiled) -> Audit:
    """Compare a compiled program with its plan."""
    used = memory(compiled)
    rows = audit_rows(plan.collectives, [(1, compiled)])
    return Audit(rows, plan.peak_bytes, used.peak_bytes, used)


def audit_rows(
    planned: Sequence[CollectiveRecord], programs: Iterable[tuple[int, jax.stages.Compiled]]
) -> tuple[AuditRow, ...]:
    """Planned collectives beside those of compiled programs, by kind.

    Args:
      planned: of one step.
      programs: how often a step runs each, and the program.
    """
    wanted: dict[str, list[int]] = {}
    for record in planned:
        entry = wanted.setdefault(record.kind, [0, 0])
        entry[0] += record.count
        entry[1] += record.count * record.bytes
    found: dict[str, list[int]] = {}
    for times, compiled in programs:
        for collective in hlo_collectives(compiled.as_text() or ""):
            entry = found.setdefault(collective.kind, [0, 0])
            entry[0] += times * collective.times
            entry[1] += times * collective.times * collective.nbytes
    kinds = sorted({*wanted, *found})
    return tuple(AuditRow(kind, *wanted.get(kind, (0, 0)), *found.get(kind, (0, 0))) for kind in kinds)
