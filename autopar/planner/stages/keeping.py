"""What a planned stage keeps of a micro-batch from its forward to its backward pass, whatever runs again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from autopar.ir import NONE, REMATS, Op, item_bytes
from autopar.partition import Recomputable
from autopar.plan import PlanFacts
from autopar.planner.stages.programs import PlannedStage, Programs, programs_of, total
from autopar.planner.stages.remat import Again, Menu
from autopar.sharding.layout import Layout, local_size
from autopar.sharding.strategy import named


@dataclass(frozen=True, slots=True)
class Forward:
    """An op of the forward pass.

    Attributes:
      mark: id of the user's op that it was made from, -1 if none.
      unit: the unit that it runs again for, counted from the stage's first.
      operands, results: value ids.
      seconds: of one micro-batch.
    """

    mark: int
    unit: int
    operands: tuple[int, ...]
    results: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Held:
    """What becomes of a micro-batch, on one device.

    Attributes:
      kept_bytes: what it keeps from its forward to its backward pass.
      pending_bytes: what it keeps from there to its weight program, where gradients of parameters are computed apart.
      again_s: seconds of what runs again for it.
    """

    kept_bytes: int
    pending_bytes: int
    again_s: float


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring ops of one unit, and what they make that the backward pass reads and that gradients of weights read.

    What becomes of it depends on how its unit is treated and on what later runs want of it: the same few cases over
    and over, as mixes are tried.
    """

    unit: int
    ops: tuple[Forward, ...]
    read: frozenset[int]
    weighed: frozenset[int]


@dataclass(frozen=True, slots=True)
class _RunHeld:
    """What becomes of a run.

    Attributes:
      held: of what it makes.
      wants: number of an earlier run -> what it wants of it, and what gradients of weights want of it through this run.
    """

    held: Held
    wants: Mapping[int, tuple[frozenset[int], frozenset[int]]]


_Extra = tuple[frozenset[int], frozenset[int]]
_NOTHING: _Extra = (frozenset(), frozenset())
_RECEIVED = -1  # in place of the number of a run: what the stage receives


@dataclass(frozen=True)
class Keeping:
    """Who makes and who reads what of a micro-batch.

    Attributes:
      units: how many units the stage has.
      forward: the ops of the forward pass, in order.
      read: what the backward pass reads, value ids, but for gradients of the stage's own parameters.
      weighed: what those read.
      sizes: bytes on one device of what the forward pass receives or makes.
      gradient_sizes: likewise of what the backward pass makes and hands to the gradients of parameters.
      recomputable: what may run again.
      first: the first of its units.
      stage: what all this was read off.
    """

    units: int
    forward: tuple[Forward, ...] = field(repr=False)
    read: frozenset[int] = field(repr=False)
    weighed: frozenset[int] = field(repr=False)
    sizes: Mapping[int, int] = field(repr=False)
    gradient_sizes: Mapping[int, int] = field(repr=False)
    recomputable: Recomputable = field(repr=False)
    first: int
    stage: PlannedStage = field(repr=False)
    _programs: dict[tuple[tuple[str, ...], bool], Programs] = field(default_factory=dict, init=False, repr=False)
    _known: dict[tuple[int, str, _Extra], _RunHeld] = field(default_factory=dict, init=False, repr=False)

    def held(self, remat: Sequence[str]) -> Held:
        """What a micro-batch keeps, and what runs again for it.

        Args:
          remat: how each unit is treated.
        """
        wanted: dict[int, _Extra] = {}
        kept = pending = 0
        again_s = 0.0
        for k in reversed(range(len(self._runs))):
            case = k, remat[self._runs[k].unit], wanted.get(k, _NOTHING)
            found = self._known.get(case)
            if found is None:
                found = self._known[case] = self._run_held(*case)
            kept += found.held.kept_bytes
            pending += found.held.pending_bytes
            again_s += found.held.again_s
            for earlier, (first, late) in found.wants.items():
                before = wanted.get(earlier, _NOTHING)
                wanted[earlier] = before[0] | first, before[1] | late
        first, late = (a | b for a, b in zip(wanted.get(_RECEIVED, _NOTHING), self._received, strict=True))
        return Held(
            kept + sum(self.sizes.get(v, 0) for v in first | late),
            pending + sum(self.sizes.get(v, 0) + self.gradient_sizes.get(v, 0) for v in late),
            again_s,
        )

    def _run_held(self, k: int, remat: str, extra: _Extra) -> _RunHeld:
        run = self._runs[k]
        own = {v for op in run.ops for v in op.results}
        again = [op for op in reversed(run.ops) if remat != NONE and self.recomputable.again(op.mark, remat)]
        wanted, made, again_s = _led_to(again, run.read | extra[0], frozenset())
        weighed, made_late, late_s = _led_to(again, run.weighed | extra[1], made)
        pending = (weighed & own) - made_late
        kept = ((wanted & own) - made - made_late) | (pending - made)
        wants = {
            earlier: (
                frozenset(v for v in wanted - own if self._run_of.get(v, _RECEIVED) == earlier),
                frozenset(v for v in weighed - own if self._run_of.get(v, _RECEIVED) == earlier),
            )
            for earlier in {self._run_of.get(v, _RECEIVED) for v in (wanted | weighed) - own}
        }
        held = Held(
            sum(self.sizes.get(v, 0) for v in kept),
            sum(self.sizes.get(v, 0) + self.gradient_sizes.get(v, 0) for v in pending),
            again_s + late_s,
        )
        return _RunHeld(held, wants)

    @functools.cached_property
    def _runs(self) -> tuple[_Run, ...]:
        found = []
        for unit, those in itertools.groupby(self.forward, key=lambda op: op.unit):
            ops = tuple(those)
            made = {v for op in ops for v in op.results}
            found.append(_Run(unit, ops, self.read & made, self.weighed & made))
        return tuple(found)

    @functools.cached_property
    def _received(self) -> _Extra:
        """What is read of what no run makes."""
        return self.read - self._run_of.keys(), self.weighed - self._run_of.keys()

    @functools.cached_property
    def _run_of(self) -> Mapping[int, int]:
        """Value -> the run that makes it."""
        return {v: k for k, run in enumerate(self._runs) for op in run.ops for v in op.results}

    def programs(self, remat: Sequence[str], *, split_backward: bool) -> Programs:
        """The same of the programs that will run, exactly; equal stages of a pipeline ask but once."""
        key = tuple(remat), split_backward
        if key not in self._programs:
            dropped = self.recomputable.dropped(self.first, remat)
            self._programs[key] = programs_of(self.stage, dropped, split_backward=split_backward)
        return self._programs[key]

    def menus(self) -> tuple[Menu, ...]:
        """For each unit, what running it again frees and costs if all others keep everything.

        Together units never free less: what two of them need to run again is then kept once.
        """
        kept = self.held([NONE] * self.units).kept_bytes
        return tuple(self._menu(unit, kept) for unit in range(self.units))

    def _menu(self, unit: int, kept: int) -> Menu:
        found = []
        for word in REMATS[1:]:
            less = self.held([word if u == unit else NONE for u in range(self.units)])
            if less.kept_bytes < kept:
                found.append(Again(word, kept - less.kept_bytes, less.again_s))
        return tuple(found)


def _led_to(again: Iterable[Forward], read: frozenset[int], known: Set[int]) -> tuple[set[int], set[int], float]:
    """What a program reads that computes ``read`` again, what it makes again, and in how many seconds.

    Args:
      again: the ops that may run again, the last first.
      read: values that it wants.
      known: those that an earlier program has made again.
    """
    wanted, made, seconds = set(read), set[int](), 0.0
    for op in again:
        if any(v in wanted and v not in known for v in op.results):
            wanted.update(op.operands)
            made.update(op.results)
            seconds += op.seconds
    return wanted, made, seconds


def keeping(stage: PlannedStage, recomputable: Recomputable, units: tuple[int, int]) -> Keeping:
    """Read off a stage's plan what is kept.

    Args:
      stage: the stage with its plan.
      recomputable: what may run again.
      units: the first of its units, and one past the last.
    """
    graph, info, plan, loop = stage.step.graph, stage.info, stage.plan, stage.loop
    (body,) = loop.regions
    received = set(graph.inputs[len(info.section.whole) :])
    layouts = {inner: plan.layouts[inner] for v, inner in zip(loop.operands, body.inputs, strict=True) if v in received}
    talk_s = stage.talk_s
    forward: list[Forward] = []
    gradients: dict[int, Layout] = {}
    read: tuple[set[int], set[int]] = (set(), set())
    late: set[int] = set()  # what the gradients of parameters are computed with, and they
    for op in body.ops:
        mark = int(op.where.mark) if op.where.mark else -1
        if mark not in info.backward:
            unit = recomputable.unit(mark, *units) - units[0]
            seconds = (total(op, stage.work_s) + total(op, talk_s)) / stage.microbatches
            forward.append(Forward(mark, unit, op.operands, op.results, seconds))
            layouts.update(_made(op, plan))
        elif mark in info.weight or not late.isdisjoint(op.operands):
            late.update(op.results)
            read[1].update(v for v in op.operands if v not in late)
        else:
            read[0].update(op.operands)
            gradients.update(_made(op, plan))
    sizes, gradient_sizes = (
        {v: local_size(graph.values[v].shape, x, plan.mesh_shape) * item_bytes(graph.values[v].dtype) for v, x in of}
        for of in (layouts.items(), gradients.items())
    )
    return Keeping(
        units[1] - units[0], tuple(forward), frozenset(read[0]), frozenset(read[1]), sizes, gradient_sizes,
        recomputable, units[0], stage,
    )  # fmt: skip


def _made(op: Op, plan: PlanFacts) -> Iterable[tuple[int, Layout]]:
    """What an op makes, in which layouts."""
    if op.loop is not None:
        return [(v, plan.layouts[v]) for v in op.results]
    strategy = named(op.rule, plan.mesh_shape, plan.ops[op.id])
    assert strategy is not None
    return zip(op.results, strategy.results, strict=True)


__all__ = ["Forward", "Held", "Keeping", "keeping"]
