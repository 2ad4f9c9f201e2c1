"""When each task of a schedule runs, from the seconds that tasks and transfers take.

A worker runs one task at a time, in the order of its list, each as soon as the worker is free and what the task needs
has arrived. What leaves a stage arrives at the next ``transfer_s`` after its task has ended. Transfers run beside
compute and beside each other at full speed: links are taken to be idle otherwise, and nobody waits to send. A pipeline
whose stages share one saturated link is slower than this says; :mod:`autopar.simulate.events` says how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from autopar.schedule import Schedule, Task, Work, executed, needs


class Event(NamedTuple):
    """One task on one worker, from ``start_s`` to ``end_s`` after the start of the step."""

    task: Task
    worker: int
    start_s: float
    end_s: float


class Message(NamedTuple):
    """What a task hands to another stage.

    Attributes:
      task: that made it.
      target: the stage that reads it.
      ready_s: when it could leave.
      start_s, end_s: when it is on its way.
    """

    task: Task
    target: int
    ready_s: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """A schedule in time.

    Attributes:
      events: every task, by start; the tasks of one worker in the order of its list.
      step_s: when the last task ends.
      busy_s: per worker, the seconds that it computes.
      messages: between stages, in the order in which they set out; none where the simulation does not tell.
    """

    events: tuple[Event, ...]
    step_s: float
    busy_s: tuple[float, ...]
    messages: tuple[Message, ...] = ()

    @property
    def bubble(self) -> float:
        """The part of the workers' time that is idle, 0 to 1."""
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.step_s) if self.step_s else 0.0


def simulate_schedule(
    schedule: Schedule,
    task_s: Callable[[Task], float],
    transfer_s: Callable[[int, int], float],
    *,
    ahead_s: Callable[[Task], float] = lambda task: 0,
) -> Timeline:
    """Run ``schedule`` in time.

    As the lists fix who runs what in which order, every start is the latest of a few ends: no queue of events is
    needed, and the work grows with the number of tasks.

    Args:
      schedule: as :func:`~autopar.schedule.check_schedule` passes it.
      task_s: seconds of a task on its worker.
      transfer_s: seconds from the end of a task on the first stage until the second stage can read its result. Asked
        once for each pair of neighbours: (s, s + 1) for activations and, in training, (s + 1, s) for their gradients;
        also where both stages are on one worker. A value that skips stages has as long as its way through them.
      ahead_s: of a task's seconds, those that need nothing from other stages: spent while it waits, if it waits.

    Raises:
      PlanError: the schedule deadlocks.
      ValueError: a time is negative or not finite.

    >>> from autopar.schedule import gpipe
    >>> line = simulate_schedule(gpipe(2, 3), lambda task: 1.0, lambda source, target: 0.0)
    >>> line.step_s, line.busy_s, line.bubble
    (8.0, (6.0, 6.0), 0.25)
    """
    programs = [(kind, stage) for kind in schedule.kinds for stage in range(schedule.stages)]
    arrivals = {program: _arrivals(program, schedule.stages, transfer_s) for program in programs}
    ends: dict[Work, list[float]] = {program: [math.nan] * schedule.microbatches for program in programs}
    free: list[float] = [0] * len(schedule.workers)
    busy: list[float] = [0] * len(schedule.workers)
    events = []
    for worker, task in executed(schedule):
        program, m = (task.kind, task.stage), task.microbatch
        seconds, start = finite(task_s(task), task), free[worker]
        ahead = min(ahead_s(task), seconds)
        for needed, delay in arrivals[program]:
            start = max(start, ends[needed][m] + delay - ahead)
        free[worker] = ends[program][m] = start + seconds
        busy[worker] += seconds
        events.append(Event(task, worker, start, start + seconds))
    events.sort(key=lambda event: event.start_s)
    return Timeline(tuple(events), max(free), tuple(busy))


def _arrivals(program: Work, stages: int, transfer_s: Callable[[int, int], float]) -> list[tuple[Work, float]]:
    """What a task waits for, and the seconds that its result is on the way."""
    kind, stage = program
    found: list[tuple[Work, float]] = []
    for needed in needs(kind, stage, stages):
        source = needed[1]
        way = f"a transfer from stage {source} to stage {stage}"
        found.append((needed, 0 if source == stage else finite(transfer_s(source, stage), way)))
    return found


def finite(value: float, what: object) -> float:
    """A time, if it can be one.

    Raises:
      ValueError: it is negative or not finite.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} takes {value} s; a time must be finite and not negative")
    return value
