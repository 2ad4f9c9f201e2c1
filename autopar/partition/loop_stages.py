"""Which stage computes which op of the loop over micro-batches.

Forward ops are cut where the caller says, in the order of the trace. Two kinds of op belong to no stage and are
computed wherever they are read (*floating*): what is the same for all micro-batches, and what is cheap and computed
from the data and keys alone (masks, positions, shifted labels).

A backward op runs on the highest stage that is not above those of the gradients it reads and that holds the forward
values it reads: those it made, received, or keeps as parameters. So gradients flow from the last stage to the first,
each residual stays where it is, and a gradient of a parameter appears where the parameter is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.ir import Op, Step
from autopar.partition.timing import HEAVY, SAME, Timing


@dataclass(frozen=True)
class LoopStages:
    """Where the loop runs.

    Attributes:
      stages: number of stages.
      of: op id -> the stages that compute it; several for floating ops.
      backward: ids of ops of the backward pass.
      homes: value id -> stages whose forward pass reads it, for values from before the loop.
    """

    stages: int
    of: dict[int, tuple[int, ...]] = field(repr=False)
    backward: frozenset[int] = field(repr=False)
    homes: dict[int, frozenset[int]] = field(repr=False)


def forward_ops(step: Step, timing: Timing) -> tuple[Op, ...]:
    """The ops of the forward pass that belong to a stage, in order: what a cut divides."""
    backward = backward_ops(timing)
    floating = floating_ops(step, timing)
    return tuple(op for op in timing.loop if op.id not in backward and op.id not in floating)


def backward_ops(timing: Timing) -> frozenset[int]:
    """Ids of the ops of the loop that belong to the backward pass, or need something of it."""
    found: set[int] = set()
    made: set[int] = set()
    for op in timing.loop:
        if op.where.phase == "backward" or not made.isdisjoint(op.operands):
            found.add(op.id)
            made.update(op.results)
    return frozenset(found)


def floating_ops(step: Step, timing: Timing) -> frozenset[int]:
    """Ids of the ops of the loop that are computed wherever they are read."""
    graph = step.graph
    learned = {graph.inputs[i] for i, _ in step.state if graph.values[graph.inputs[i]].shape}
    heavy = set(learned)  # values that depend on the state or on a matrix product
    for op in step.graph.ops:
        if op.primitive in HEAVY or op.loop is not None or op.opaque or not heavy.isdisjoint(op.operands):
            heavy.update(op.results)
    return frozenset(
        op.id for op in timing.loop if all(timing.places[v] == SAME for v in op.results) or heavy.isdisjoint(op.results)
    )


def stage_loop(step: Step, timing: Timing, cut: Sequence[int]) -> LoopStages:
    """Give every op of the loop its stages.

    Args:
      step: the step.
      timing: when its ops run.
      cut: per stage, the position in :func:`forward_ops` where it begins; the first is 0.
    """
    return _Assignment(step, timing, cut).run()


class _Assignment:
    def __init__(self, step: Step, timing: Timing, cut: Sequence[int]) -> None:
        self.timing = timing
        self.literal = {v: value.literal for v, value in step.graph.values.items()}
        self.last = len(cut) - 1
        self.everywhere = frozenset(range(len(cut)))
        self.floating = floating_ops(step, timing)
        self.backward = backward_ops(timing)
        forward = forward_ops(step, timing)
        self.fixed: dict[int, int] = {}
        for stage, start in enumerate(cut):
            stop = cut[stage + 1] if stage < self.last else len(forward)
            self.fixed.update((op.id, stage) for op in forward[start:stop])
        self.makers = {v: op for op in timing.loop for v in op.results}
        self.before = {v: op for op in timing.before for v in op.results}
        self.present: dict[int, set[int]] = {}  # value -> stages that hold it after their forward pass
        self.gradients: dict[int, int] = {}  # value of the backward pass -> its stage

    def run(self) -> LoopStages:
        for op in self.timing.loop:
            if op.id in self.fixed:
                stage = self.fixed[op.id]
                for v in op.results:
                    self.present.setdefault(v, set()).add(stage)
                for v in op.operands:
                    self._hold(v, stage)
        for op in self.timing.loop:
            if op.id in self.backward and op.id not in self.floating:
                stage = self.fixed[op.id] = self._backward_stage(op)
                self.gradients.update((v, stage) for v in op.results)
        of: dict[int, set[int]] = {}
        wanted: dict[int, set[int]] = {}
        for op in reversed(self.timing.loop):
            found = {self.fixed[op.id]} if op.id in self.fixed else set()
            if op.id in self.floating:
                found = set().union(*(wanted.get(v, set()) for v in op.results)) or {self.last}
            of[op.id] = found
            for v in op.operands:
                wanted.setdefault(v, set()).update(found)
        homes = {v: frozenset(stages) for v, stages in self.present.items() if v not in self.makers}
        return LoopStages(self.last + 1, {i: tuple(sorted(s)) for i, s in of.items()}, self.backward, homes)

    def _hold(self, v: int, stage: int) -> None:
        """A stage's forward pass reads ``v``, and so what a floating or early ``v`` is computed from."""
        stages = self.present.setdefault(v, set())
        if stage in stages:
            return
        stages.add(stage)
        op = self.makers.get(v)
        source = op if op is not None and op.id in self.floating else self.before.get(v)
        for w in source.operands if source is not None else ():
            self._hold(w, stage)

    def _backward_stage(self, op: Op) -> int:
        gradients = [self.gradients[v] for v in op.operands if v in self.gradients]
        highest = min(gradients, default=self.last)
        held = self.everywhere
        for v in op.operands:
            if v not in self.gradients:
                held = held & self._held(v)
        fitting = [s for s in held if s <= highest]
        return max(fitting) if fitting else highest

    def _held(self, v: int) -> frozenset[int]:
        """Stages at which the backward pass finds ``v`` without a transfer."""
        op = self.makers.get(v)
        if op is not None and op.id not in self.floating:
            return frozenset(self.present.get(v, ())) or self.everywhere
        source = op if op is not None else self.before.get(v)
        if source is None:
            return frozenset(self.present.get(v, ())) or self.everywhere
        if all(self.literal[w] for w in source.operands):
            return self.everywhere  # zeros
        if self.present.get(v):
            return frozenset(self.present[v])
        held = self.everywhere
        for w in source.operands:
            held = held & self._held(w)
        return held or self.everywhere
