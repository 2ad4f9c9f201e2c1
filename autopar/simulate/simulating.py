"""From a plan to its simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.errors import OptionError
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.schedule import Schedule
from autopar.simulate.memory import held_bytes, stepped
from autopar.simulate.parts import Part, parts_of, schedule_of
from autopar.simulate.planned import links_of, message_bytes, simulate_messages
from autopar.simulate.simulation import Simulation
from autopar.simulate.timeline import Event, Message, Timeline
from autopar.simulate.uses import LinkUse, Update, WorkerUse


def simulate(
    plan: PlanFacts,
    *,
    contention: bool = True,
    flops: float | None = None,
    dtype: str | None = None,
    units: float = 0.0,
    unit: str = "tokens",
) -> Simulation:
    """Simulate a plan: every task, every message, and what is held, over one step.

    Args:
      plan: with stages or without. Without, all devices do the same at the same time, phase by phase.
      contention: messages between stages wait for each other where they leave or reach the same devices. False gives
        each the whole link, as the planner's own estimate of ``plan.step_s`` does.
      flops: of the model, per step; by default what the plan recorded.
      dtype: in which the devices' peak is taken; by default that in which most of the plan's FLOPs are.
      units: tokens in a step's batch, or whatever is to be counted.
      unit: what they are called.

    Returns:
      Step time, bubble, the use of each worker and link, memory over time, utilisation.

    Raises:
      OptionError: a number makes no sense; FLOPs were given for a plan that does not know its dtype.
      PlanError: the plan's file is so old that it does not tell the passes apart.

    Example:
      >>> import jax, autopar
      >>> step = lambda w, x: w - 0.1 * jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
      >>> shapes = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
      >>> found = autopar.simulate(autopar.plan(step, *shapes, cluster="h100:8"), units=512, unit="examples")
      >>> found.flops == 2 * 2 * 512 * 64 * 64, found.bubble, found.hfu == found.mfu
      (True, 0.0, True)
    """
    for what, number in (("flops", flops or 0.0), ("units", units)):
        if not 0 <= number < math.inf:
            raise OptionError(f"{what}={number!r} makes no sense; it must be a finite number, not negative.")
    timeline = simulate_messages(plan, contention=contention)
    schedule, parts = schedule_of(plan), parts_of(plan)
    updates = _updates(schedule, parts, timeline.step_s)
    step_s = max(update.end_s for update in updates)
    cluster = Cluster.from_dict(plan.cluster)
    main = dtype or max(plan.flops, key=lambda name: plan.flops[name], default=None)
    if flops and main is None:
        raise OptionError(
            "the plan does not say in which dtype it computes (its file is older than plan format 6), so utilisation "
            "needs it: autopar.simulate(plan, flops=..., dtype='bfloat16')."
        )
    return Simulation(
        plan.name,
        cluster.name,
        cluster.devices,
        plan.microbatches,
        timeline,
        updates,
        step_s,
        tuple(
            _use(w, schedule, parts, timeline, updates, step_s, staged=bool(plan.stages))
            for w in range(len(schedule.workers))
        ),
        _links(plan, schedule, parts, timeline),
        contention,
        sum(island.devices * island.device.peak(main) for island in cluster.islands) if main else 0.0,
        main or "",
        sum(plan.flops.values()) if flops is None else flops,
        plan.again_flops,
        units,
        unit,
    )


def _updates(schedule: Schedule, parts: Sequence[Part], begin_s: float) -> tuple[Update, ...]:
    """What each worker does once; of several stages one after the other."""
    return tuple(Update(w, begin_s, begin_s + sum(p.once_s for p in of)) for w, of in _held(schedule, parts))


def _held(schedule: Schedule, parts: Sequence[Part]) -> list[tuple[int, list[Part]]]:
    workers = range(len(schedule.workers))
    return [(w, [parts[s] for s, home in enumerate(schedule.worker_of) if home == w]) for w in workers]


def _use(
    worker: int,
    schedule: Schedule,
    parts: Sequence[Part],
    timeline: Timeline,
    updates: Sequence[Update],
    step_s: float,
    *,
    staged: bool,
) -> WorkerUse:
    stages = tuple(s for s, home in enumerate(schedule.worker_of) if home == worker)
    own = [parts[s] for s in stages]
    update = updates[worker]
    talk_s = sum(p.once_talk_s for p in own)
    talk_s += schedule.microbatches * sum(p.talk_s[kind] for p in own for kind in schedule.kinds)
    busy_s = timeline.busy_s[worker] + update.end_s - update.start_s
    events = [e for e in timeline.events if e.worker == worker]
    exposed_s = _exposed_s(events, timeline.messages)
    held = list(held_bytes(schedule, parts, events, worker))
    passing = max(p.passing_bytes for p in own)
    if update.end_s > update.start_s:
        level = held[-1][1]
        held += [(update.start_s, level + passing), (update.end_s, level)]
    first, stop = own[0].devices
    return WorkerUse(
        stages if staged else (),
        stop - first,
        busy_s - talk_s,
        talk_s,
        exposed_s,
        max(step_s - busy_s - exposed_s, 0.0),
        stepped(held),
    )


def _exposed_s(events: Sequence[Event], messages: Sequence[Message]) -> float:
    """Seconds for which a worker waits after what it waits for has been computed."""
    found, free = 0.0, 0.0
    to = {(m.target, m.task.microbatch, m.task.kind): m for m in messages}
    for e in events:
        message = to.get((e.task.stage, e.task.microbatch, e.task.kind))
        if message is not None:
            found += max(e.start_s - max(free, message.ready_s), 0.0)
        free = e.end_s
    return found


def _links(plan: PlanFacts, schedule: Schedule, parts: Sequence[Part], timeline: Timeline) -> tuple[LinkUse, ...]:
    link = links_of(plan)
    worker = schedule.worker_of
    found: dict[tuple[int, int, str], list[Message]] = {}
    for m in timeline.messages:
        level = link(m.task.stage, m.target)
        if level is not None:
            found.setdefault((worker[m.task.stage], worker[m.target], level.name), []).append(m)
    return tuple(
        LinkUse(
            *way,
            len(those),
            sum(message_bytes(parts, m.task.stage, m.target) for m in those),
            sum(m.end_s - m.start_s for m in those),
            sum(m.start_s - m.ready_s for m in those),
        )
        for way, those in sorted(found.items())
    )
