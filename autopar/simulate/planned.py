"""When each task of a plan runs, from the plan's own figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from autopar.cost import transfer_s
from autopar.mesh import Cluster, Level, link_between
from autopar.plan import PlanFacts
from autopar.schedule import Schedule, Task
from autopar.simulate.events import Route, simulate_events
from autopar.simulate.parts import Part, parts_of, schedule_of
from autopar.simulate.timeline import Timeline, simulate_schedule

LinkOf = Callable[[int, int], Level | None]


def simulate_plan(plan: PlanFacts) -> Timeline:
    """The timeline of all micro-batches, as predicted, messages at full speed; what runs once per step follows it.

    Args:
      plan: any. Stages on the same devices take turns there, as one worker.

    Raises:
      OptionError: the plan's schedule is not known, or has other workers.
      ClusterError: its stages' devices overlap in part, or are not on its cluster.
      PlanError: it was saved by an autopar so old that it does not tell the passes apart.
    """
    parts, link = parts_of(plan), links_of(plan)
    return simulate_schedule(
        schedule_of(plan), _task_s(parts), lambda source, target: _message_s(parts, link, source, target)
    )


def simulate_messages(plan: PlanFacts, *, contention: bool) -> Timeline:
    """The same with every message, where messages may wait for each other.

    A link has a bandwidth per device and direction, so what leaves one worker by links of one kind is one queue, and
    what reaches it another. Collectives inside tasks are not in the way of messages.

    Args:
      plan: any.
      contention: whether they wait; False gives the times of :func:`simulate_plan`.

    Raises:
      OptionError, ClusterError, PlanError: as :func:`simulate_plan`.
    """
    parts, link, schedule = parts_of(plan), links_of(plan), schedule_of(plan)

    def route(source: int, target: int) -> Route:
        ports = _ports(schedule, link(source, target), source, target) if contention else ()
        return Route(_message_s(parts, link, source, target), ports)

    return simulate_events(schedule, _task_s(parts), route)


def links_of(plan: PlanFacts) -> LinkOf:
    """The link between two stages; none where they are on the same devices."""
    cluster = Cluster.from_dict(plan.cluster)

    @functools.cache
    def link(source: int, target: int) -> Level | None:
        a, b = plan.stages[source], plan.stages[target]
        return link_between(cluster, range(*a.devices), range(*b.devices))

    return link


def message_bytes(parts: Sequence[Part], source: int, target: int) -> float:
    """What the busiest device sends of one message from a stage to another."""
    a, b = parts[source], parts[target]
    nbytes = a.sends_bytes if target > source else a.returns_bytes
    return nbytes / min(a.devices[1] - a.devices[0], b.devices[1] - b.devices[0])


def _message_s(parts: Sequence[Part], link: LinkOf, source: int, target: int) -> float:
    return transfer_s(link(source, target), message_bytes(parts, source, target))


def _ports(schedule: Schedule, link: Level | None, source: int, target: int) -> tuple[tuple[str, int, str], ...]:
    if link is None:
        return ()
    worker = schedule.worker_of
    return ("out", worker[source], link.name), ("in", worker[target], link.name)


def _task_s(parts: Sequence[Part]) -> Callable[[Task], float]:
    return lambda task: parts[task.stage].task_s[task.kind]
