"""What a plan says of each of its stages, in the terms of a simulation. A plan without stages is one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.errors import PlanError
from autopar.plan import CollectiveRecord, PlanFacts, StageFacts
from autopar.schedule import Kind, Schedule, make_schedule

_STATIC = ("parameter", "optimizer", "state", "constant")


@dataclass(frozen=True)
class Part:
    """A stage.

    Attributes:
      devices: ids, first and one past the last.
      task_s: seconds of a task by its kind.
      talk_s: the part of it that is communication inside the stage.
      once_s, once_talk_s: likewise of what is done once per step.
      static_bytes: what a device holds all the time: the state, and what of the batch waits for its turn.
      kept_bytes: what a micro-batch keeps on a device from its forward to its backward task.
      pending_bytes: what it keeps from there to its weight task.
      passing_bytes: what else is there while a task runs, at most.
      sends_bytes, returns_bytes: to later and to earlier stages for one micro-batch, over all devices.
    """

    devices: tuple[int, int]
    task_s: Mapping[Kind, float]
    talk_s: Mapping[Kind, float]
    once_s: float
    once_talk_s: float
    static_bytes: int
    kept_bytes: int
    pending_bytes: int
    passing_bytes: int
    sends_bytes: int = 0
    returns_bytes: int = 0


def schedule_of(plan: PlanFacts) -> Schedule:
    """The order of a plan's tasks. Stages on the same devices take turns there, as one worker.

    Raises:
      OptionError: the schedule is not known, or has other workers.
    """
    if not plan.stages:
        return make_schedule("1f1b", 1, plan.microbatches)
    workers = len({stage.devices for stage in plan.stages})
    return make_schedule(plan.schedule, len(plan.stages), plan.microbatches, workers)


def parts_of(plan: PlanFacts) -> tuple[Part, ...]:
    """The stages of a plan.

    Raises:
      PlanError: its file is so old that it does not tell the passes apart.
    """
    if plan.stages:
        splits = Kind.WEIGHT in schedule_of(plan).kinds
        return tuple(_stage(stage, plan.microbatches, splits) for stage in plan.stages)
    if not plan.phase_s:
        raise PlanError(
            f"the plan of {plan.name} does not say how long its forward pass, its backward pass and its update take: "
            "it was saved by an old autopar (plan format 1). Plan again."
        )
    talk = {phase: _seconds(plan.collectives, phase) for phase in plan.phase_s}
    static = min(sum(n for kind, n in plan.memory.items() if kind in _STATIC), plan.peak_bytes)
    kinds = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward"}
    return (
        Part(
            (0, plan.devices),
            {kind: plan.phase_s[phase] / plan.microbatches for kind, phase in kinds.items()},
            {kind: talk[phase] / plan.microbatches for kind, phase in kinds.items()},
            plan.phase_s["update"],
            talk["update"],
            static,
            0,
            0,
            plan.peak_bytes - static,
        ),
    )


def _stage(stage: StageFacts, microbatches: int, splits: bool) -> Part:
    peak = stage.peak_bytes - (stage.in_flight - 1 - stage.pending) * stage.residual_bytes
    peak -= stage.pending * stage.pending_bytes
    static = sum(n for kind, n in stage.plan.memory.items() if kind in _STATIC) + stage.waiting_bytes
    static = min(static, peak - stage.residual_bytes)
    weight_s = min(stage.weight_s, stage.backward_s) if splits else 0.0
    talk_s = {phase: _seconds(stage.collectives, phase) / microbatches for phase in ("forward", "backward")}
    share = weight_s / stage.backward_s if stage.backward_s else 0.0
    return Part(
        stage.devices,
        {Kind.FORWARD: stage.forward_s, Kind.BACKWARD: stage.backward_s - weight_s, Kind.WEIGHT: weight_s},
        {
            Kind.FORWARD: talk_s["forward"],
            Kind.BACKWARD: talk_s["backward"] * (1 - share),
            Kind.WEIGHT: talk_s["backward"] * share,
        },
        stage.once_s,
        _seconds(stage.plan.collectives, "update"),
        max(static, 0),
        stage.residual_bytes,
        stage.pending_bytes,
        peak - stage.residual_bytes - max(static, 0),
        stage.sends_bytes,
        stage.returns_bytes,
    )


def _seconds(collectives: Sequence[CollectiveRecord], phase: str) -> float:
    return sum(c.seconds for c in collectives if c.phase == phase)
