"""A measured step, simulated from the mean durations of its programs: whether its order explains how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from autopar.errors import OptionError
from autopar.schedule import Kind, Schedule
from autopar.simulate.perfetto import Measured
from autopar.simulate.timeline import Timeline, simulate_schedule

_KINDS = {"forward": Kind.FORWARD, "backward": Kind.BACKWARD, "weight": Kind.WEIGHT}


def mean_task_s(spans: Sequence[Measured]) -> dict[tuple[Kind, int], float]:
    """Mean seconds of the programs that run for every micro-batch, by kind and stage."""
    found: dict[tuple[Kind, int], list[float]] = {}
    for span in spans:
        if span.program in _KINDS:
            found.setdefault((_KINDS[span.program], span.stage), []).append(span.end_s - span.start_s)
    return {program: statistics.fmean(seconds) for program, seconds in found.items()}


def replay(schedule: Schedule, spans: Sequence[Measured], *, message_s: float = 0.0) -> Timeline:
    """The micro-batches of a measured step as a simulation has them, every task as long as its program took on average.

    Args:
      schedule: that was run.
      spans: measured (``executable.timeline``).
      message_s: of a message between stages; among devices of one process some 10 microseconds.

    Raises:
      OptionError: a program of the schedule was not measured.
    """
    mean_s = mean_task_s(spans)
    for kind in sorted(schedule.kinds, key=list(Kind).index):
        for stage in range(schedule.stages):
            if (kind, stage) not in mean_s:
                raise OptionError(
                    f"the spans have no run of task {kind.value} of stage {stage}, which schedule {schedule.name!r} "
                    "has; pass those of a whole step: executable.timed(...), then executable.timeline."
                )
    return simulate_schedule(schedule, lambda task: mean_s[task.kind, task.stage], lambda source, target: message_s)
