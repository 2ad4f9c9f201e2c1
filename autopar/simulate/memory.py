"""What a device of each worker holds over a step: a step function of time.

All the time there is the state. A micro-batch in flight adds what it keeps from its forward to its backward task, and
from there to its weight task where there is one. While a task runs, what it needs besides comes on top: the most that
the stage ever needs, as a plan does not tell its tasks apart. The maximum of a stage is its plan's ``peak_bytes``.
"""

from __future__ import annotations

from collections.abc import Sequence

from autopar.schedule import Kind, Schedule, Task
from autopar.simulate.parts import Part
from autopar.simulate.timeline import Event

Steps = tuple[tuple[float, int], ...]
"""(seconds, bytes): so many bytes are held from then on."""


def held_bytes(schedule: Schedule, parts: Sequence[Part], events: Sequence[Event], worker: int) -> Steps:
    """Bytes on one device of a worker, while its tasks run.

    Args:
      schedule: which kinds of task there are.
      parts: of each stage.
      events: of all workers, each worker's in order.
      worker: which one.
    """
    last = max(schedule.kinds, key=list(Kind).index)
    level = sum(parts[s].static_bytes for s, w in enumerate(schedule.worker_of) if w == worker)
    found: list[tuple[float, int]] = [(0.0, level)]
    for event in events:
        if event.worker != worker:
            continue
        part, kind = parts[event.task.stage], event.task.kind
        level -= _kept(part, _before(event.task))
        found.append((event.start_s, level + part.kept_bytes + part.passing_bytes))
        level += _kept(part, kind if kind != last else None)
        found.append((event.end_s, level))
    return stepped(found)


def stepped(levels: Sequence[tuple[float, int]]) -> Steps:
    """A step function: of several levels at one moment the last, and none that changes nothing."""
    found: list[tuple[float, int]] = []
    for moment, level in levels:
        if found and found[-1][0] == moment:
            found.pop()
        if not found or found[-1][1] != level:
            found.append((moment, level))
    return tuple(found)


def _before(task: Task) -> Kind | None:
    """What kind of task a micro-batch has behind it on a stage."""
    return {Kind.FORWARD: None, Kind.BACKWARD: Kind.FORWARD, Kind.WEIGHT: Kind.BACKWARD}[task.kind]


def _kept(part: Part, after: Kind | None) -> int:
    """What a micro-batch keeps after a task of a kind, and before the next."""
    if after is None:
        return 0
    return part.kept_bytes if after == Kind.FORWARD else part.pending_bytes
