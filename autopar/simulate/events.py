"""A schedule in time where messages share links: a discrete-event simulation.

Workers run tasks as :mod:`autopar.simulate.timeline` says. A message goes through *ports*, each of which carries one
message at a time: what is ready first goes first, and it starts when all of its ports are free. So a message may wait
behind others that leave the same devices or reach the same devices, and a link that is slower than the tasks beside it
sets the pace of the pipeline. Nobody waits to send.

Without ports this gives what :func:`~autopar.simulate.simulate_schedule` gives; with them no task runs earlier.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from autopar.schedule import Kind, Schedule, Task, Work, executed, needs
from autopar.simulate.timeline import Event, Message, Timeline, finite


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a message from one stage to another.

    Attributes:
      seconds: that it takes, once it is on its way.
      ports: names of what carries one message at a time; none where nothing else ever goes there.
    """

    seconds: float
    ports: tuple[Hashable, ...] = ()


def simulate_events(
    schedule: Schedule, task_s: Callable[[Task], float], route: Callable[[int, int], Route]
) -> Timeline:
    """Run ``schedule`` in time, messages one after the other where they share a port.

    Args:
      schedule: as :func:`~autopar.schedule.check_schedule` passes it.
      task_s: seconds of a task on its worker.
      route: of the messages from one stage to another, asked once for each pair of neighbours.

    Returns:
      The timeline, with every message.

    Raises:
      PlanError: the schedule deadlocks.
      ValueError: a time is negative or not finite.

    >>> from autopar.schedule import inference
    >>> slow = Route(3.0, ports=("the link",))
    >>> simulate_events(inference(2, 4), lambda task: 1.0, lambda source, target: slow).step_s
    14.0
    """
    return _Run(schedule, task_s, route).run()


class _Run:
    """What is going on at a moment."""

    def __init__(self, schedule: Schedule, task_s: Callable[[Task], float], route: Callable[[int, int], Route]) -> None:
        self.schedule, self.task_s = schedule, task_s
        self.readers, self.missing = _readers(schedule)
        hops = {(p[1], c[1]) for p, readers in self.readers.items() for c in readers if p[1] != c[1]}
        self.routes = {hop: _checked(route(*hop), *hop) for hop in sorted(hops)}
        self.left = [deque(tasks) for tasks in schedule.workers]
        self.idle = [True] * len(schedule.workers)
        self.busy: list[float] = [0] * len(schedule.workers)
        self.port_free: dict[Hashable, float] = {}
        self.arrived: dict[Task, int] = {}
        self.events: list[Event] = []
        self.messages: list[Message] = []
        self.due: list[tuple[float, int, Callable[[float], None]]] = []
        self.number = itertools.count()

    def run(self) -> Timeline:
        now: float = 0
        for worker in range(len(self.left)):
            self.start(worker, now)
        while self.due:
            now, _, happen = heapq.heappop(self.due)
            happen(now)
        if any(self.left):
            for _ in executed(self.schedule):  # says who waits for whom
                pass
        self.events.sort(key=lambda event: event.start_s)
        return Timeline(tuple(self.events), now, tuple(self.busy), tuple(self.messages))

    def at(self, moment: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self.due, (moment, next(self.number), happen))

    def start(self, worker: int, now: float) -> None:
        """Let a worker start its next task, if it can."""
        tasks = self.left[worker]
        if not (self.idle[worker] and tasks and self.arrived.get(tasks[0], 0) == self.missing[_work(tasks[0])]):
            return
        task = tasks.popleft()
        seconds = finite(self.task_s(task), task)
        self.idle[worker] = False
        self.busy[worker] += seconds
        self.events.append(Event(task, worker, now, now + seconds))
        self.at(now + seconds, lambda moment: self.end(worker, task, moment))

    def end(self, worker: int, task: Task, now: float) -> None:
        """A task has ended: what it made sets out."""
        for kind, stage in self.readers[_work(task)]:
            reader = Task(kind, stage, task.microbatch)
            if stage == task.stage:
                self.arrive(reader, now)
            else:
                self.send(task, reader, now)
        self.idle[worker] = True
        self.start(worker, now)

    def send(self, task: Task, reader: Task, now: float) -> None:
        hop = task.stage, reader.stage
        seconds, ports = self.routes[hop].seconds, self.routes[hop].ports
        start = max([now, *(self.port_free.get(port, now) for port in ports)])
        for port in ports:
            self.port_free[port] = start + seconds
        self.messages.append(Message(task, reader.stage, now, start, start + seconds))
        self.at(start + seconds, lambda moment: self.arrive(reader, moment))

    def arrive(self, task: Task, now: float) -> None:
        self.arrived[task] = self.arrived.get(task, 0) + 1
        self.start(self.schedule.worker_of[task.stage], now)


def _work(task: Task) -> Work:
    return task.kind, task.stage


def _readers(schedule: Schedule) -> tuple[dict[Work, list[Work]], dict[Work, int]]:
    """Who reads what a program makes, and how much each program needs."""
    programs = [(kind, stage) for kind in Kind if kind in schedule.kinds for stage in range(schedule.stages)]
    readers: dict[Work, list[Work]] = {program: [] for program in programs}
    missing = {}
    for program in programs:
        needed = needs(*program, schedule.stages)
        missing[program] = len(needed)
        for maker in needed:
            readers.setdefault(maker, []).append(program)
    return readers, missing


def _checked(route: Route, source: int, target: int) -> Route:
    finite(route.seconds, f"a transfer from stage {source} to stage {target}")
    return route
