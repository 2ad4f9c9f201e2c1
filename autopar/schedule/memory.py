"""How many micro-batches a stage holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.schedule.orders import rounds
from autopar.schedule.task import Kind, Schedule

# What each schedule promises, per stage. A stage never holds more than there are micro-batches, whatever it promises.
MOST_IN_FLIGHT: dict[str, Callable[[Schedule, int], int]] = {
    "gpipe": lambda schedule, stage: schedule.microbatches,
    "1f1b": lambda schedule, stage: schedule.stages - stage,
    "interleaved": lambda schedule, stage: 2 * len(rounds(schedule.microbatches, len(schedule.workers))[0]),
    "zb-h1": lambda schedule, stage: schedule.stages,
    "inference": lambda schedule, stage: 1,
}


def in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Per stage, the most micro-batches that it holds at a time.

    A micro-batch is held from the start of its forward task to the end of its last task on the stage: the weight task
    where the schedule has one, else the backward task, else the forward task itself. Between backward and weight task
    a stage needs less of it than before (what the gradients of parameters read), and it counts as one all the same. So
    ``zb-h1`` holds on *every* stage up to what ``1f1b`` holds on its first, and no stage holds more than that.

    >>> from autopar.schedule.orders import one_f_one_b, zb_h1
    >>> in_flight(one_f_one_b(4, 8)), in_flight(zb_h1(4, 8))
    ((4, 3, 2, 1), (4, 4, 4, 4))
    """
    last = max(schedule.kinds, key=list(Kind).index)
    held, most = [0] * schedule.stages, [0] * schedule.stages
    for tasks in schedule.workers:
        for task in tasks:
            if task.kind == Kind.FORWARD:
                held[task.stage] += 1
                most[task.stage] = max(most[task.stage], held[task.stage])
            if task.kind == last:
                held[task.stage] -= 1
    return tuple(most)


@dataclass(frozen=True, slots=True)
class Flight:
    """Micro-batches that a stage holds while it computes another.

    Attributes:
      waiting: for their backward task.
      pending: for their weight task.
    """

    waiting: int
    pending: int = 0

    @property
    def all(self) -> int:
        """With the one that is computed."""
        return 1 + self.waiting + self.pending


def flights(schedule: Schedule) -> tuple[tuple[Flight, ...], ...]:
    """Per stage, what it may hold at a time besides the micro-batch that it computes; less than another is left out.

    >>> from autopar.schedule.orders import one_f_one_b, zb_h1
    >>> flights(one_f_one_b(2, 8))
    ((Flight(waiting=1, pending=0),), (Flight(waiting=0, pending=0),))
    >>> flights(zb_h1(3, 8))[1]
    (Flight(waiting=1, pending=1),)
    """
    last = max(schedule.kinds, key=list(Kind).index)
    found: list[set[Flight]] = [set() for _ in range(schedule.stages)]
    for tasks in schedule.workers:
        held = dict.fromkeys(range(schedule.stages), Flight(0))
        for task in tasks:
            before, kind = held[task.stage], task.kind
            beside = Flight(before.waiting - (kind == Kind.BACKWARD), before.pending - (kind == Kind.WEIGHT))
            found[task.stage].add(beside)
            waits = kind == Kind.FORWARD and kind != last, kind == Kind.BACKWARD and kind != last
            held[task.stage] = Flight(beside.waiting + waits[0], beside.pending + waits[1])
    return tuple(tuple(sorted(_most(those), key=lambda f: (f.waiting, f.pending))) for those in found)


def _most(found: set[Flight]) -> list[Flight]:
    """Those that no other holds at least as much of both as."""
    return [f for f in found if not any(o != f and o.waiting >= f.waiting and o.pending >= f.pending for o in found)]


def in_flight_bound(schedule: Schedule) -> tuple[int, ...]:
    """Per stage, the most micro-batches that a schedule of this name may hold; all of them for a name of your own."""
    promise = MOST_IN_FLIGHT.get(schedule.name, MOST_IN_FLIGHT["gpipe"])
    return tuple(min(schedule.microbatches, promise(schedule, stage)) for stage in range(schedule.stages))
