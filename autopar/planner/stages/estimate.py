"""What one stage costs, by planning it: seconds per micro-batch and per step, and what it holds.

A stage is planned as a step of its own, so its memory is that of one micro-batch at a time. Under a schedule it holds
several: for each further one, what the forward pass keeps for the backward pass (*residuals*). With rematerialisation
units keep less, and the backward pass computes the rest again, one unit after the other: of what a micro-batch does not
keep, that of one unit is there at a time, the largest at worst (*in turn*; not so with XLA on CPU, which orders the
backward program as it likes). Where gradients of parameters have a program of their
own, a micro-batch that waits for that keeps what it reads: residuals, what was computed again, and gradients; what was
computed again is then taken to be all there at the end of the backward program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autopar.ir import NONE, REMATS, Op, Step, item_bytes
from autopar.mesh import Cluster
from autopar.partition import Recomputable, StageSection
from autopar.plan import CollectiveRecord, PlanFacts
from autopar.planner.record import call_s
from autopar.planner.stages.keeping import Keeping, keeping
from autopar.planner.stages.programs import PlannedStage
from autopar.planner.stages.remat import Menu, least_again
from autopar.schedule import Flight
from autopar.sharding.layout import Layout, local_size

_LARGEST = 6  # so many of the sizes of what units make again are tried as the largest
_STATIC = ("parameter", "optimizer", "state", "constant")


@dataclass(frozen=True)
class Estimate:
    """A planned stage.

    Attributes:
      plan: the plan, of a loop over all micro-batches.
      forward_s, backward_s: seconds of one micro-batch, with the call of a program for each.
      weight_s: the part of ``backward_s`` that no other stage waits for.
      once_s: seconds once per step.
      static_bytes: on one device, what is held over the whole loop: the state, what is prepared of it, and the sums.
      residual_bytes: what the backward pass of one micro-batch reads of its forward pass, on one device.
      peak_bytes: on one device, with one micro-batch at a time.
      sends_bytes: what leaves for later stages, for one micro-batch, over all devices.
      returns_bytes: what leaves for earlier stages, likewise.
      waiting_bytes: the part of ``peak_bytes`` that is the step's batch, waiting on one device for its turn.
      kept_bytes: what a micro-batch keeps on one device while others are computed: ``residual_bytes``, or less if some
        of it is computed again.
      spared_bytes: the part of ``peak_bytes`` that is never there at once: units compute it again one after the other.
      pending_bytes: what it keeps on one device between its backward and its weight program, if it has both.
      remat: how each unit is treated.
      again_s: the part of ``backward_s`` that is spent on computing again, with what is communicated for it.
      again: that communication, per step; empty until it is :meth:`settled`.
      menus: what else may be done with each unit.
      in_turn: what units compute again is there one unit at a time.
      keeping: who reads what, which says what any mix keeps; None if only its units were planned, one by one.
      call_s: seconds to call one of its programs, where that was measured.
      memory_price: what a GiB of memory was worth when it was planned, seconds.
    """

    plan: PlanFacts
    forward_s: float
    backward_s: float
    weight_s: float
    once_s: float
    static_bytes: int
    residual_bytes: int
    peak_bytes: int
    sends_bytes: int
    returns_bytes: int
    waiting_bytes: int
    kept_bytes: int
    spared_bytes: int
    pending_bytes: int
    remat: tuple[str, ...]
    again_s: float
    again: tuple[CollectiveRecord, ...]
    menus: tuple[Menu, ...] = field(repr=False)
    in_turn: bool
    keeping: Keeping | None = field(repr=False)
    call_s: float = 0.0
    memory_price: float = 0.0

    def rematerialised(self, remat: Sequence[str]) -> Estimate:
        """The same, with each unit treated so; nothing may be computed again yet."""
        chosen = [a for menu, word in zip(self.menus, remat, strict=True) for a in menu if a.remat == word]
        if self.keeping is not None:
            held = self.keeping.held(remat)
            kept, pending, again_s = held.kept_bytes, held.pending_bytes, held.again_s
        else:
            kept = self.residual_bytes - sum(a.freed_bytes for a in chosen)
            pending, again_s = self.pending_bytes, sum(a.again_s for a in chosen)
        largest = max((a.freed_bytes for a in chosen), default=0)
        return replace(
            self,
            remat=tuple(remat),
            kept_bytes=kept,
            spared_bytes=self.residual_bytes - kept - largest if self.in_turn else 0,
            pending_bytes=pending,
            backward_s=self.backward_s + again_s,
            again_s=again_s,
        )

    def settled(self, *, split_backward: bool) -> Estimate:
        """The same as its programs will have it, if it was planned as a whole.

        Args:
          split_backward: whether gradients of parameters have a program of their own. The backward program then holds
            what it hands to that until it ends.
        """
        if self.keeping is None:
            return self
        found = self.keeping.programs(self.remat, split_backward=split_backward)
        again_s = found.backward_s + found.weight_s
        return replace(
            self,
            kept_bytes=found.kept_bytes,
            spared_bytes=0 if split_backward else self.spared_bytes,
            pending_bytes=found.pending_bytes,
            peak_bytes=self.peak_bytes + found.handed_bytes,
            backward_s=self.backward_s - self.again_s + again_s + split_backward * self.call_s,
            weight_s=self.weight_s + found.weight_s + split_backward * self.call_s,
            again_s=again_s,
            again=found.again,
        )

    def always(self, remat: str) -> Estimate:
        """The same, with all units treated so and no other choice."""
        return replace(self.rematerialised([remat] * len(self.remat)), menus=((),) * len(self.remat))

    def fitted(self, flights: Sequence[Flight], memory_bytes: float) -> Estimate | None:
        """The same with as little recomputation as fits, if it can fit.

        Args:
          flights: what it may hold besides the micro-batch that it computes.
          memory_bytes: of one device.
        """
        if self.peak_with(flights) <= memory_bytes:
            return self
        if not any(self.menus):
            return None
        mixes = [*self._least_again(flights, memory_bytes), *((word,) * len(self.remat) for word in REMATS[1:])]
        tried = [self._relaxed(mix, flights, memory_bytes) for mix in mixes]
        return min((e for e in tried if e is not None), key=lambda e: e.backward_s, default=None)

    def _least_again(self, flights: Sequence[Flight], memory_bytes: float) -> list[tuple[str, ...]]:
        """Mixes that fit as far as menus tell: each the least recomputation if none makes more again than so much."""
        over = [(self.peak_with([f]) - memory_bytes, f.waiting) for f in flights]
        if not self._spares(flights):
            need = max(n / waiting if waiting else math.inf if n > 0 else 0.0 for n, waiting in over)
            found = [least_again(self.menus, need)]
        else:
            sizes = sorted({a.freed_bytes for menu in self.menus for a in menu})
            found = []
            for largest in sizes[:: -max(1, len(sizes) // _LARGEST)]:
                menus = [tuple(a for a in menu if a.freed_bytes <= largest) for menu in self.menus]
                found.append(least_again(menus, max((n + largest) / (waiting + 1) for n, waiting in over)))
        return [mix for mix in found if mix is not None]

    def _relaxed(self, remat: Sequence[str], flights: Sequence[Flight], memory_bytes: float) -> Estimate | None:
        """With a mix, or as much less recomputation as still fits: together units may free more than one by one."""
        found = self.rematerialised(remat)
        if found.peak_with(flights) > memory_bytes:
            return None

        def changed(unit: int, word: str) -> Estimate:
            return self.rematerialised((*found.remat[:unit], word, *found.remat[unit + 1 :]))

        changes = [(u, word) for u, treated in enumerate(remat) for word in REMATS[: REMATS.index(treated)]]
        while self.keeping is not None and changes:
            before = found.backward_s
            tried = [(changed(*change), change) for change in changes]
            # What does not fit now will not with others relaxed, too.
            fitting = [(e.backward_s, change) for e, change in tried if e.peak_with(flights) <= memory_bytes]
            changes = [change for _, change in sorted(fitting)]
            for change in changes:
                less = changed(*change)
                if less.backward_s < found.backward_s and less.peak_with(flights) <= memory_bytes:
                    found = less
            if found.backward_s == before:
                break
        return found

    @property
    def leanest_bytes(self) -> int:
        """The least that a micro-batch can keep."""
        return self.kept_bytes - sum(max((a.freed_bytes for a in menu), default=0) for menu in self.menus)

    @property
    def held_bytes(self) -> int:
        """What is held between the passes of one micro-batch."""
        return self.static_bytes + self.residual_bytes

    @property
    def microbatch_s(self) -> float:
        """Forward and backward pass of one micro-batch."""
        return self.forward_s + self.backward_s

    @property
    def passing_bytes(self) -> int:
        """What is held besides the state and one micro-batch's residuals."""
        return max(self.peak_bytes - self.static_bytes - self.residual_bytes, 0)

    def _spares(self, flights: Sequence[Flight]) -> bool:
        """Whether a backward program forgets what it has computed again: no weight program waits for it."""
        return self.in_turn and not any(f.pending for f in flights)

    def besides(self, flight: Flight) -> int:
        """Bytes on one device of the micro-batches that it holds besides the one that it computes."""
        return flight.waiting * self.kept_bytes + flight.pending * self.pending_bytes

    def peak_with(self, flights: Sequence[Flight]) -> int:
        """Peak bytes of one device that may hold so much besides the micro-batch that it computes."""
        spared = self.spared_bytes if self._spares(flights) else 0
        return self.peak_bytes - spared + max(map(self.besides, flights))


def estimate(stage: PlannedStage, recomputable: Recomputable, units: tuple[int, int], *, in_turn: bool) -> Estimate:
    """Read off a stage's plan what it costs.

    Args:
      stage: the stage with its plan.
      recomputable: what may run again.
      units: the first of its units, and one past the last.
      in_turn: what units compute again is there one unit at a time.
    """
    step, info, plan, microbatches = stage.step, stage.info, stage.plan, stage.microbatches
    keeps = keeping(stage, recomputable, units)
    remat = (NONE,) * keeps.units
    held = keeps.held(remat)
    residual = held.kept_bytes
    backward_s = plan.phase_s["backward"] / microbatches
    waiting = _waiting_bytes(step, info, plan, microbatches)
    work = {op.id: _work(op) for op in info.section.loop if op.id in info.backward}
    weights = sum(flops for i, flops in work.items() if i in info.weight)
    called_s = call_s(plan, Cluster.from_dict(plan.cluster).device)
    return Estimate(
        plan,
        plan.phase_s["forward"] / microbatches + called_s,
        backward_s + called_s,
        backward_s * weights / max(sum(work.values()), 1.0),
        plan.phase_s["update"] + called_s,
        sum(n for kind, n in plan.memory.items() if kind in _STATIC)
        + _sums_bytes(stage)
        + _prepared_bytes(stage)
        + waiting,
        residual,
        plan.peak_bytes + waiting,
        *_sent_bytes(step, info),
        waiting,
        residual,
        0,
        held.pending_bytes,
        remat,
        0.0,
        (),
        keeps.menus(),
        in_turn,
        keeps,
        called_s,
    )


def _waiting_bytes(step: Step, info: StageSection, plan: PlanFacts, microbatches: int) -> int:
    """Bytes on one device of the micro-batches of the step's batch that are still to come.

    The batch is there from the start; what other stages hand over comes when it is wanted.
    """
    first = len(info.section.whole)
    fed = plan.arguments[first : first + info.fed]
    one = sum(local_size(a.shape, a.layout, plan.mesh_shape) * item_bytes(a.dtype) for a in fed)
    return one * (microbatches - 1)


def together(units: Sequence[Estimate]) -> Estimate:
    """A stage of several units, as far as they tell: times and state add up, passing memory is the largest."""
    static, residual = sum(e.static_bytes for e in units), sum(e.residual_bytes for e in units)
    freed = [e.residual_bytes - e.kept_bytes for e in units]
    calls = [e.call_s for e in units]
    spared_s = sum(calls) - max(calls)  # what is planned one by one is called together
    return Estimate(
        units[0].plan,
        sum(e.forward_s for e in units) - spared_s,
        sum(e.backward_s for e in units) - spared_s,
        sum(e.weight_s for e in units),
        sum(e.once_s for e in units) - spared_s,
        static,
        residual,
        static + residual + max(e.passing_bytes for e in units),
        units[-1].sends_bytes,
        units[0].returns_bytes,
        sum(e.waiting_bytes for e in units),
        sum(e.kept_bytes for e in units),
        sum(freed) - max(freed) if units[0].in_turn else 0,
        sum(e.pending_bytes for e in units),
        tuple(itertools.chain.from_iterable(e.remat for e in units)),
        sum(e.again_s for e in units),
        (),
        tuple(itertools.chain.from_iterable(e.menus for e in units)),
        units[0].in_turn,
        None,
        max(calls),
    )


def _work(op: Op) -> float:
    inner = sum(_work(o) for region in op.regions for o in region.ops)
    return op.rule.flops + inner * (op.loop.length if op.loop is not None else 1)


def _sums_bytes(stage: PlannedStage) -> int:
    """What is added up in the loop."""
    assert stage.loop.loop is not None
    (body,) = stage.loop.regions
    first = stage.loop.loop.consts
    sums = [stage.step.graph.values[v] for v in body.inputs[first : first + len(stage.info.section.summed)]]
    plan = stage.plan
    return sum(local_size(v.shape, plan.layouts[v.id], plan.mesh_shape) * item_bytes(v.dtype) for v in sums)


def _prepared_bytes(stage: PlannedStage) -> int:
    """What is made before the loop and read in it: casts and gathered copies of parameters."""
    loop, plan, graph = stage.loop, stage.plan, stage.step.graph
    assert loop.loop is not None
    (body,) = loop.regions
    inputs = set(graph.inputs)
    made: dict[tuple[int, Layout], int] = {}
    for v, inner in zip(loop.operands[: loop.loop.consts], body.inputs, strict=False):
        layout = plan.layouts[inner]
        if v not in inputs or plan.layouts[v] != layout:
            value = graph.values[v]
            made[v, layout] = local_size(value.shape, layout, plan.mesh_shape) * item_bytes(value.dtype)
    return sum(made.values())


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
