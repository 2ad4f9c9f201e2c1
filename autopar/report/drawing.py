"""A pipeline in time, as a few lines of letters: a row for each worker, columns for time."""

from __future__ import annotations

from autopar.plan import PlanFacts
from autopar.report.common import workers
from autopar.simulate import Timeline, simulate_plan

_NARROWEST = 2.0  # columns of the mean task, below which the drawing says nothing
_IDLE = "."


def drawing(plan: PlanFacts, width: int = 76) -> tuple[str, ...]:
    """The predicted step: ``F2`` is the forward pass of micro-batch 2, ``B`` backward, ``W`` weights, ``U`` update.

    Where a worker has several stages, ``F3.2`` is that of stage 3.

    Args:
      plan: with stages.
      width: columns of the widest line.

    Returns:
      A line for each worker; none where the tasks are too many to be told apart.
    """
    if not plan.step_s:
        return ()
    timeline = simulate_plan(plan)
    found = workers(plan)
    names = [f"stage {', '.join(map(str, stages))}  " for stages in found]
    labels = [name.rjust(max(map(len, names))) for name in names]
    columns = width - len(labels[0])
    per_column_s = plan.step_s / columns
    tasks = len(timeline.events)
    if sum(timeline.busy_s) / tasks < _NARROWEST * per_column_s:
        return ()
    return tuple(label + _row(plan, timeline, w, columns) for w, label in enumerate(labels))


def _row(plan: PlanFacts, timeline: Timeline, worker: int, columns: int) -> str:
    per_column_s = plan.step_s / columns
    stages = workers(plan)[worker]
    row = [_IDLE] * columns
    spans = [
        (f"{e.task.kind.value}{f'{e.task.stage}.' if len(stages) > 1 else ''}{e.task.microbatch}", e.start_s, e.end_s)
        for e in timeline.events
        if e.worker == worker
    ]
    spans.append(("U", timeline.step_s, timeline.step_s + sum(plan.stages[s].once_s for s in stages)))
    for name, start_s, end_s in spans:
        first, last = round(start_s / per_column_s), round(end_s / per_column_s)
        row[first:last] = name.ljust(last - first, "-")[: last - first]
    return "".join(row[:columns])
