"""What one stage costs, by planning it: seconds per micro-batch and per step, and what it holds.

A stage is planned as a step of its own, so its memory is that of one micro-batch at a time. Under a schedule it holds
several: for each further one, what the forward pass keeps for the backward pass (*residuals*). With rematerialisation
it keeps only what passes between units, and the backward pass computes the rest again, for one micro-batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autopar.ir import Op, Step, item_bytes
from autopar.partition import StageSection
from autopar.plan import PlanFacts
from autopar.planner.stages.cost import StageCost
from autopar.sharding.layout import Layout, local_size
from autopar.sharding.strategy import named

_STATIC = ("parameter", "optimizer", "state", "constant")


@dataclass(frozen=True)
class Estimate:
    """A planned stage.

    Attributes:
      plan: the plan, of a loop over all micro-batches.
      forward_s, backward_s: seconds of one micro-batch.
      weight_s: the part of ``backward_s`` that no other stage waits for.
      once_s: seconds once per step.
      static_bytes: on one device, what is held over the whole loop: the state, what is prepared of it, and the sums.
      residual_bytes: what one micro-batch keeps on one device.
      joint_bytes: the part of it that comes in or passes between units.
      peak_bytes: on one device, with one micro-batch at a time.
      sends_bytes: what leaves for later stages, for one micro-batch, over all devices.
      returns_bytes: what leaves for earlier stages, likewise.
      waiting_bytes: the part of ``peak_bytes`` that is the step's batch, waiting on one device for its turn.
      remat: whether the forward pass is computed again in the backward pass.
    """

    plan: PlanFacts
    forward_s: float
    backward_s: float
    weight_s: float
    once_s: float
    static_bytes: int
    residual_bytes: int
    joint_bytes: int
    peak_bytes: int
    sends_bytes: int
    returns_bytes: int
    waiting_bytes: int
    remat: bool = False

    def rematerialised(self) -> Estimate:
        """The same, with the forward pass computed again in the backward pass."""
        return replace(self, remat=True, backward_s=self.backward_s + self.forward_s)

    @property
    def held_bytes(self) -> int:
        """What is held between the passes of one micro-batch."""
        return self.static_bytes + self.residual_bytes

    @property
    def kept_bytes(self) -> int:
        """What a micro-batch keeps on one device while others are computed."""
        return self.joint_bytes if self.remat else self.residual_bytes

    @property
    def microbatch_s(self) -> float:
        """Forward and backward pass of one micro-batch."""
        return self.forward_s + self.backward_s

    @property
    def passing_bytes(self) -> int:
        """What is held besides the state and one micro-batch's residuals."""
        return max(self.peak_bytes - self.static_bytes - self.residual_bytes, 0)

    def peak_with(self, in_flight: int) -> int:
        """Peak bytes of one device that holds ``in_flight`` micro-batches at a time."""
        return self.peak_bytes + (in_flight - 1) * self.kept_bytes


def estimate(step: Step, info: StageSection, plan: PlanFacts, microbatches: int, joints: frozenset[int]) -> Estimate:
    """Read off a stage's plan what it costs; ``joints`` are the ops whose results pass between units."""
    backward_s = plan.phase_s["backward"] / microbatches
    waiting = _waiting_bytes(step, info, plan, microbatches)
    work = {op.id: _work(op) for op in info.section.loop if op.id in info.backward}
    weights = sum(flops for i, flops in work.items() if i in info.weight)
    return Estimate(
        plan,
        plan.phase_s["forward"] / microbatches,
        backward_s,
        backward_s * weights / max(sum(work.values()), 1.0),
        plan.phase_s["update"],
        sum(n for kind, n in plan.memory.items() if kind in _STATIC)
        + _sums_bytes(step, info, plan)
        + _prepared_bytes(step, plan)
        + waiting,
        *_residual_bytes(step, info, plan, joints),
        plan.peak_bytes + waiting,
        *_sent_bytes(step, info),
        waiting,
    )


def _waiting_bytes(step: Step, info: StageSection, plan: PlanFacts, microbatches: int) -> int:
    """Bytes on one device of the micro-batches of the step's batch that are still to come.

    The batch is there from the start; what other stages hand over comes when it is wanted.
    """
    first = len(info.section.whole)
    fed = plan.arguments[first : first + info.fed]
    one = sum(local_size(a.shape, a.layout, plan.mesh_shape) * item_bytes(a.dtype) for a in fed)
    return one * (microbatches - 1)


def together(units: Sequence[Estimate], *, remat: bool) -> Estimate:
    """A stage of several units, as far as they tell: times and state add up, passing memory is the largest."""
    static, residual = sum(e.static_bytes for e in units), sum(e.residual_bytes for e in units)
    added = Estimate(
        units[0].plan,
        sum(e.forward_s for e in units),
        sum(e.backward_s for e in units),
        sum(e.weight_s for e in units),
        sum(e.once_s for e in units),
        static,
        residual,
        sum(e.joint_bytes for e in units),
        static + residual + max(e.passing_bytes for e in units),
        units[-1].sends_bytes,
        units[0].returns_bytes,
        sum(e.waiting_bytes for e in units),
    )
    return added.rematerialised() if remat else added


@dataclass(frozen=True)
class Sums:
    """Running sums over a chain of units, each planned alone on one shape of submesh.

    Attributes:
      missing: how many of the first units have no plan.
      forward_s, microbatch_s, once_s, static_bytes, residual_bytes, joint_bytes: of the first units together.
      passing_bytes: of units ``i .. j - 1``, the largest: row ``i``, column ``j``.
    """

    missing: np.ndarray
    forward_s: np.ndarray
    microbatch_s: np.ndarray
    once_s: np.ndarray
    static_bytes: np.ndarray
    residual_bytes: np.ndarray
    joint_bytes: np.ndarray
    passing_bytes: np.ndarray

    @classmethod
    def of(cls, units: Sequence[Estimate | None]) -> Sums:
        """The sums over ``units``; None is a unit that does not fit."""

        def running(number: Callable[[Estimate], float]) -> np.ndarray:
            return np.concatenate([[0.0], np.cumsum([0.0 if e is None else number(e) for e in units])])

        passing = np.array([0.0 if e is None else e.passing_bytes for e in units])
        largest = np.zeros((len(units), len(units) + 1))
        for i in range(len(units)):
            largest[i, i + 1 :] = np.maximum.accumulate(passing[i:])
        return cls(
            np.concatenate([[0], np.cumsum([e is None for e in units])]),
            running(lambda e: e.forward_s),
            running(lambda e: e.microbatch_s),
            running(lambda e: e.once_s),
            running(lambda e: e.static_bytes),
            running(lambda e: e.residual_bytes),
            running(lambda e: e.joint_bytes),
            largest,
        )

    def peak_bytes(self, first: int, stop: int, in_flight: int, *, remat: bool) -> float:
        """Bytes on one device that holds ``in_flight`` micro-batches; infinite where a unit has no plan."""
        if self.missing[stop] > self.missing[first]:
            return math.inf
        residual = self.residual_bytes[stop] - self.residual_bytes[first]
        kept = self.joint_bytes[stop] - self.joint_bytes[first] if remat else residual
        static = self.static_bytes[stop] - self.static_bytes[first]
        return float(static + residual + (in_flight - 1) * kept + self.passing_bytes[first, stop])

    def cost(self, first: int, stop: int, *, remat: bool) -> StageCost:
        """What the partition search minimises."""
        microbatch_s = self.microbatch_s[stop] - self.microbatch_s[first]
        if remat:
            microbatch_s += self.forward_s[stop] - self.forward_s[first]
        return StageCost(float(max(microbatch_s, 0.0)), float(max(self.once_s[stop] - self.once_s[first], 0.0)))


def _work(op: Op) -> float:
    inner = sum(_work(o) for region in op.regions for o in region.ops)
    return op.rule.flops + inner * (op.loop.length if op.loop is not None else 1)


def _loop(step: Step) -> Op:
    return next(op for op in step.graph.ops if op.loop is not None and not op.where.mark)


def _sums(step: Step, info: StageSection) -> tuple[int, ...]:
    """What is added up in the loop: value ids inside it."""
    loop = _loop(step)
    assert loop.loop is not None
    (body,) = loop.regions
    first = loop.loop.consts
    return body.inputs[first : first + len(info.section.summed)]


def _sums_bytes(step: Step, info: StageSection, plan: PlanFacts) -> int:
    sums = [step.graph.values[v] for v in _sums(step, info)]
    return sum(local_size(v.shape, plan.layouts[v.id], plan.mesh_shape) * item_bytes(v.dtype) for v in sums)


def _prepared_bytes(step: Step, plan: PlanFacts) -> int:
    """What is made before the loop and read in it: casts and gathered copies of parameters."""
    loop = _loop(step)
    assert loop.loop is not None
    (body,) = loop.regions
    inputs = set(step.graph.inputs)
    made: dict[tuple[int, Layout], int] = {}
    for v, inner in zip(loop.operands[: loop.loop.consts], body.inputs, strict=False):
        layout = plan.layouts[inner]
        if v not in inputs or plan.layouts[v] != layout:
            value = step.graph.values[v]
            made[v, layout] = local_size(value.shape, layout, plan.mesh_shape) * item_bytes(value.dtype)
    return sum(made.values())


def _residual_bytes(step: Step, info: StageSection, plan: PlanFacts, joints: frozenset[int]) -> tuple[int, int]:
    """Bytes on one device of what the forward pass makes, or receives, and the backward pass reads.

    Of all, and of what is kept if the rest is computed again: what came in, and what passes between units.
    """
    loop = _loop(step)
    assert loop.loop is not None
    (body,) = loop.regions
    received = set(step.graph.inputs[len(info.section.whole) :])
    entering = [inner for v, inner in zip(loop.operands, body.inputs, strict=True) if v in received]
    layouts: dict[int, Layout] = {v: plan.layouts[v] for v in entering}
    kept: set[int] = set()
    passing = set(entering)
    needed: set[int] = set()  # by the forward pass
    for op in body.ops:
        mark = int(op.where.mark) if op.where.mark else -1
        if mark in info.backward:
            kept.update(v for v in op.operands if v in layouts)
            continue
        needed.update(op.operands)
        if op.loop is not None:
            layouts.update((v, plan.layouts[v]) for v in op.results)
        else:
            strategy = named(op.rule, plan.mesh_shape, plan.ops[op.id])
            assert strategy is not None
            layouts.update(zip(op.results, strategy.results, strict=True))
        if mark in joints:
            passing.update(op.results)
    values = step.graph.values

    def bytes_of(ids: set[int]) -> int:
        return sum(local_size(values[v].shape, layouts[v], plan.mesh_shape) * item_bytes(values[v].dtype) for v in ids)

    return bytes_of(kept), bytes_of(passing & (kept | needed))


def _sent_bytes(step: Step, info: StageSection) -> tuple[int, int]:
    """Bytes of one micro-batch that go to later and to earlier stages."""
    graph = step.graph
    maker = {v: op.id for op in info.section.loop for v in op.results}
    parts = graph.outputs[len(info.section.wholes_out) :]
    sends = returns = 0
    for v, out in zip(info.section.parts_out, parts, strict=True):
        nbytes = graph.values[out].nbytes
        if maker.get(v) in info.backward:
            returns += nbytes
        else:
            sends += nbytes
    return sends, returns
