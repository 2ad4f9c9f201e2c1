"""Whether a schedule can be run: the one check for schedules of whatever origin."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from autopar.errors import PlanError
from autopar.schedule.execution import executed, title
from autopar.schedule.memory import in_flight, in_flight_bound
from autopar.schedule.task import Kind, Schedule, Task

_KINDS = (
    frozenset({Kind.FORWARD}),
    frozenset({Kind.FORWARD, Kind.BACKWARD}),
    frozenset({Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT}),
)


def check_schedule(schedule: Schedule) -> None:
    """Check that ``schedule`` does every task once, where the stage is, in an order that ends, in bounded memory.

    The order is found legal by running the lists (:func:`executed`).

    Raises:
      PlanError: a task is missing, there twice, outside the grid of stages and micro-batches, or on another worker than
        the rest of its stage; the lists deadlock; or a stage holds more micro-batches than a schedule of that name
        promises. The message names the tasks and workers.
    """
    complaint = _wrong_tasks(schedule) or _wrong_workers(schedule)
    if complaint:
        raise PlanError(f"{title(schedule)} {complaint}")
    for _ in executed(schedule):
        pass
    for stage, (held, bound) in enumerate(zip(in_flight(schedule), in_flight_bound(schedule), strict=True)):
        if held > bound:
            raise PlanError(
                f"{title(schedule)} holds {held} micro-batches at a time on stage {stage}; a schedule of that name "
                f"holds at most {bound} there. Move its backward tasks up, or give the schedule a name of its own"
            )


def _wrong_tasks(schedule: Schedule) -> str | None:
    if schedule.kinds not in _KINDS:
        return (
            f"has tasks of the kinds {_listed(sorted(schedule.kinds)) or 'none'}; it needs forward tasks (F), for "
            f"training also backward tasks (B), and may have weight tasks (W) besides these"
        )
    times = Counter((task.kind, task.stage, task.microbatch) for tasks in schedule.workers for task in tasks)
    grid = set(itertools.product(schedule.kinds, range(schedule.stages), range(schedule.microbatches)))
    repeated = [place for place, count in times.items() if count > 1]
    if times.keys() - grid:
        strange = _tasks(times.keys() - grid)
        return f"has tasks of stages or micro-batches that are not there: {strange}. Both count from 0"
    if repeated:
        return f"runs tasks more than once: {_tasks(repeated)}. Keep one of each"
    if len(times) < len(grid):
        missing = _tasks(grid - times.keys())
        return f"lacks {missing}. Every stage runs each of its kinds of task once for every micro-batch"
    return None


def _wrong_workers(schedule: Schedule) -> str | None:
    homes: dict[int, list[int]] = {}
    for worker, tasks in enumerate(schedule.workers):
        for stage in {task.stage for task in tasks}:
            homes.setdefault(stage, []).append(worker)
    for stage, workers in sorted(homes.items()):
        if len(workers) > 1:
            of_stage = {w: [t for t in schedule.workers[w] if t.stage == stage] for w in workers}
            home = max(workers, key=lambda w: len(of_stage[w]))
            away = [f"{task} on worker {w}" for w in workers if w != home for task in of_stage[w]]
            return (
                f"runs stage {stage} on worker {home} but {_listed(away)}. A stage's parameters lie on one worker: "
                f"put all of its tasks into one list"
            )
    return None


def _tasks(places: Iterable[tuple[Kind, int, int]]) -> str:
    return _listed([Task(*place) for place in sorted(places)])


def _listed(things: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(str(thing) for thing in things[:most])
    return shown if len(things) <= most else f"{shown} and {len(things) - most} more"
