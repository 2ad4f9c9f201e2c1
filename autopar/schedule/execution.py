"""What a task waits for, and the lists of a schedule as workers that wait for each other run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autopar.errors import PlanError
from autopar.schedule.task import Kind, Schedule, Task

Work = tuple[Kind, int]  # a kind of task on a stage


def needs(kind: Kind, stage: int, stages: int) -> tuple[Work, ...]:
    """What must have ended, for the same micro-batch, before a task of ``kind`` on ``stage`` may start.

    >>> [f"{kind}{stage}" for kind, stage in needs(Kind.BACKWARD, 1, stages=3)]
    ['F1', 'B2']
    """
    if kind == Kind.FORWARD:
        return ((Kind.FORWARD, stage - 1),) if stage else ()
    if kind == Kind.WEIGHT:
        return ((Kind.BACKWARD, stage),)
    own = (Kind.FORWARD, stage)
    return (own, (Kind.BACKWARD, stage + 1)) if stage + 1 < stages else (own,)


def needs_by_program(schedule: Schedule) -> dict[Work, tuple[Work, ...]]:
    """:func:`needs` of every kind of task on every stage."""
    return {(kind, s): needs(kind, s, schedule.stages) for kind in Kind for s in range(schedule.stages)}


def executed(schedule: Schedule) -> Iterator[tuple[int, Task]]:
    """Run every worker's list: in order, each task blocking until what it needs has ended, wherever that runs.

    Sends do not block: a result waits at its receiver until it is asked for.

    Yields:
      (worker, task), each task after what it needs and after the tasks before it in its worker's list.

    Raises:
      PlanError: some workers wait for ever. The message says who waits for what.
    """
    needed = needs_by_program(schedule)
    ended: dict[Work, set[int]] = {program: set() for program in needed}  # its micro-batches
    waiting: dict[tuple[Work, int], list[int]] = {}  # what is waited for -> the workers that do
    position = [0] * len(schedule.workers)
    awake = list(range(len(schedule.workers)))
    while awake:
        worker = awake.pop()
        tasks = schedule.workers[worker]
        while position[worker] < len(tasks):
            task = tasks[position[worker]]
            program, m = (task.kind, task.stage), task.microbatch
            missing = [p for p in needed[program] if m not in ended[p]]
            if missing:
                waiting.setdefault((missing[0], m), []).append(worker)
                break
            yield worker, task
            position[worker] += 1
            ended[program].add(m)
            if (program, m) in waiting:
                awake += waiting.pop((program, m))
    if waiting:
        awaited = {w: Task(*program, m) for (program, m), workers in waiting.items() for w in workers}
        raise PlanError(f"{title(schedule)} {_deadlock(schedule, position, awaited)}")


def title(schedule: Schedule) -> str:
    """How messages call a schedule."""
    return f"schedule {schedule.name!r} of {schedule.stages} stages and {schedule.microbatches} micro-batches"


def _deadlock(schedule: Schedule, position: Sequence[int], awaited: Mapping[int, Task]) -> str:
    """Follow who waits for whom until a worker comes twice, or a task that nobody runs."""
    runs = {task: w for w, tasks in enumerate(schedule.workers) for task in tasks}
    at = {w: schedule.workers[w][position[w]] for w in awaited}
    worker, seen = min(awaited), []
    while worker not in seen:
        seen.append(worker)
        if awaited[worker] not in runs:
            return f"cannot end: {at[worker]} waits for {awaited[worker]}, which no worker runs. Add it to a list"
        worker = runs[awaited[worker]]
    circle = seen[seen.index(worker) :]
    waits = "; ".join(f"worker {w} has come to {at[w]} and waits for {awaited[w]}" for w in circle)
    return (
        f"deadlocks: {waits}. Each waits for what a waiting worker has further down its list; "
        f"move {' or '.join(str(awaited[w]) for w in circle)} up"
    )
