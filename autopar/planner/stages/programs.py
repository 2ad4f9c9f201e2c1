"""What the programs of a planned stage hand to each other and do twice, read off the stage taken apart.

The search for what to compute again goes by :mod:`autopar.planner.stages.keeping`, which knows values; here are forms
of values, as the programs that will run have them. A conversion runs again wherever a second program makes the same
form, and an op that runs again does so with the collectives inside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.ir import Op, Step, item_bytes, op_flops
from autopar.partition import StageSection
from autopar.plan import CollectiveRecord, PlanFacts
from autopar.planner.record import Site, collective_records
from autopar.segments import BACKWARD, FORWARD, WEIGHT, Segments, take_apart
from autopar.sharding.layout import local_size


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its plan, and what that costs place by place.

    Attributes:
      step: the stage as a step of its own, a loop over micro-batches.
      info: what the stage does.
      plan: its plan.
      microbatches: their number.
      work_s: op id -> seconds per step, without what it communicates.
      sites: where it communicates.
    """

    step: Step = field(repr=False)
    info: StageSection = field(repr=False)
    plan: PlanFacts = field(repr=False)
    microbatches: int
    work_s: Mapping[int, float] = field(repr=False)
    sites: Sequence[Site] = field(repr=False)

    @property
    def talk_s(self) -> dict[int, float]:
        """Op id -> seconds per step of what it communicates."""
        found: dict[int, float] = {}
        for site in self.sites:
            found[site.op] = found.get(site.op, 0.0) + site.seconds
        return found

    @property
    def loop(self) -> Op:
        """The loop over micro-batches."""
        return next(op for op in self.step.graph.ops if op.loop is not None and not op.where.mark)


@dataclass(frozen=True)
class Programs:
    """What the programs of a stage hand to each other, and do again.

    Attributes:
      kept_bytes: what a micro-batch keeps on one device after its forward program.
      pending_bytes: what it keeps between its backward and its weight program.
      handed_bytes: the part of it that the backward pass made: gradients.
      backward_s, weight_s: seconds of what runs again in the backward and in the weight program, per micro-batch.
      again: the collectives that run again, per step; their seconds are in the two above.
      again_flops: FLOPs of the matrix products and convolutions that run again, per micro-batch.
    """

    kept_bytes: int
    pending_bytes: int
    handed_bytes: int
    backward_s: float
    weight_s: float
    again: tuple[CollectiveRecord, ...]
    again_flops: float


def programs_of(stage: PlannedStage, dropped: frozenset[int], *, split_backward: bool) -> Programs:
    """What becomes of a planned stage.

    Args:
      stage: the stage.
      dropped: ids of the user's ops of the forward pass that run again (:meth:`Recomputable.dropped`).
      split_backward: whether gradients of parameters have a program of their own.
    """
    parts = take_apart(stage.step, stage.plan, stage.info, split_backward=split_backward, again=dropped)
    talk = {k: _talk_again(stage, parts, k) for k in (BACKWARD, WEIGHT)}
    seconds = {k: _work_again_s(stage, parts, k) + sum(s.seconds for s in talk[k]) for k in talk}
    made = {k: set(parts.programs[k].outputs) for k in (FORWARD, BACKWARD) if k in parts.programs}
    held = {k: _microbatch_inputs(parts, k) for k in talk}
    gradients = held[WEIGHT] & made.get(BACKWARD, set())
    backward = (op for op in stage.loop.regions[0].ops if int(op.where.mark or -1) in stage.info.backward)
    fresh = {v for op in backward for v in op.results}
    return Programs(
        _bytes(stage, parts, held[BACKWARD] | (held[WEIGHT] - gradients)),
        _bytes(stage, parts, held[WEIGHT]),
        _bytes(stage, parts, {name for name in gradients if parts.buffers[name][0][0] in fresh}),
        seconds[BACKWARD] / stage.microbatches,
        seconds[WEIGHT] / stage.microbatches,
        collective_records([*talk[BACKWARD], *talk[WEIGHT]]),
        sum(_flops_again(stage, parts, k) for k in talk),
    )


def _microbatch_inputs(parts: Segments, k: int) -> set[str]:
    inputs = parts.programs[k].inputs if k in parts.programs else ()
    return {name for name in inputs if parts.buffers[name][1] == "microbatch"}


def _bytes(stage: PlannedStage, parts: Segments, names: Iterable[str]) -> int:
    values, mesh = stage.step.graph.values, stage.plan.mesh_shape
    forms = (parts.buffers[name][0] for name in names)
    return sum(local_size(values[v].shape, layout, mesh) * item_bytes(values[v].dtype) for v, layout in forms)


def _work_again_s(stage: PlannedStage, parts: Segments, k: int) -> float:
    """Seconds of compute per step of what a program runs again."""
    ids = parts.again.get(k, frozenset())
    return sum(total(op, stage.work_s) for op in stage.loop.regions[0].ops if op.id in ids)


def _flops_again(stage: PlannedStage, parts: Segments, k: int) -> float:
    """FLOPs of the products that a program runs again."""
    ids, values = parts.again.get(k, frozenset()), stage.step.graph.values
    return sum(op_flops(op, values) for op in stage.loop.regions[0].ops if op.id in ids)


def _talk_again(stage: PlannedStage, parts: Segments, k: int) -> list[Site]:
    """Where a program communicates what an earlier one has communicated already."""
    again = parts.again.get(k, frozenset())
    ops = {i for op in stage.loop.regions[0].ops if op.id in again for i in _ids(op)}
    before = {form for j in range(FORWARD, k) for form in parts.converts.get(j, ())}
    twice = before & parts.converts.get(k, frozenset())
    return [
        dataclasses.replace(site, phase="backward")
        for site in stage.sites
        if (site.op in ops if site.form is None else (site.form[:2], site.form[2]) in twice)
    ]


def total(op: Op, numbers: Mapping[int, float]) -> float:
    """A number per op id, added up over an op and the ops inside it."""
    return numbers.get(op.id, 0.0) + sum(total(inner, numbers) for inner in _inside(op))


def _inside(op: Op) -> Iterable[Op]:
    return (inner for region in op.regions for inner in region.ops)


def _ids(op: Op) -> list[int]:
    return [op.id, *(i for inner in _inside(op) for i in _ids(inner))]


__all__ = ["PlannedStage", "Programs", "programs_of", "total"]
