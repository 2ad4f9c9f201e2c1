"""What a planned stage keeps of a micro-batch from its forward to its backward pass, whatever runs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopar.ir import NONE, REMATS, Op, Step, item_bytes
from autopar.partition import Recomputable, StageSection
from autopar.plan import PlanFacts
from autopar.planner.stages.remat import Again, Menu
from autopar.sharding.layout import local_size
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


@dataclass(frozen=True)
class Keeping:
    """Who makes and who reads what of a micro-batch.

    Attributes:
      units: how many units the stage has.
      forward: the ops of the forward pass, in order.
      read: what the backward pass reads, value ids.
      sizes: bytes on one device of what the forward pass receives or makes.
      recomputable: what may run again.
    """

    units: int
    forward: tuple[Forward, ...] = field(repr=False)
    read: frozenset[int] = field(repr=False)
    sizes: Mapping[int, int] = field(repr=False)
    recomputable: Recomputable = field(repr=False)

    def held(self, remat: Sequence[str]) -> tuple[int, float]:
        """Bytes on one device that a micro-batch keeps, and seconds of what runs again for it.

        Args:
          remat: how each unit is treated.
        """
        wanted = set(self.read)
        made_again: set[int] = set()
        again_s = 0.0
        for op in reversed(self.forward):
            if remat[op.unit] != NONE and self.recomputable.again(op.mark, remat[op.unit]):
                made_again.update(op.results)
                if not wanted.isdisjoint(op.results):
                    wanted.update(op.operands)
                    again_s += op.seconds
        kept = sum(self.sizes.get(v, 0) for v in wanted - made_again)
        return kept, again_s

    def menus(self) -> tuple[Menu, ...]:
        """For each unit, what running it again frees and costs if all others keep everything.

        Together units never free less: what two of them need to run again is then kept once.
        """
        kept, _ = self.held([NONE] * self.units)
        return tuple(self._menu(unit, kept) for unit in range(self.units))

    def _menu(self, unit: int, kept: int) -> Menu:
        found = []
        for word in REMATS[1:]:
            less, again_s = self.held([word if u == unit else NONE for u in range(self.units)])
            if less < kept:
                found.append(Again(word, kept - less, again_s))
        return tuple(found)


def keeping(
    step: Step,
    info: StageSection,
    plan: PlanFacts,
    microbatches: int,
    op_s: Mapping[int, float],
    recomputable: Recomputable,
    units: tuple[int, int],
) -> Keeping:
    """Read off a stage's plan what is kept.

    Args:
      step: the stage as a step of its own, a loop over micro-batches.
      info: what the stage does.
      plan: its plan.
      microbatches: their number.
      op_s: op id -> seconds per step.
      recomputable: what may run again.
      units: the first of its units, and one past the last.
    """
    loop = next(op for op in step.graph.ops if op.loop is not None and not op.where.mark)
    (body,) = loop.regions
    received = set(step.graph.inputs[len(info.section.whole) :])
    layouts = {inner: plan.layouts[inner] for v, inner in zip(loop.operands, body.inputs, strict=True) if v in received}
    forward: list[Forward] = []
    read: set[int] = set()
    for op in body.ops:
        mark = int(op.where.mark) if op.where.mark else -1
        if mark in info.backward:
            read.update(op.operands)
            continue
        unit = recomputable.unit(mark, *units) - units[0]
        forward.append(Forward(mark, unit, op.operands, op.results, _seconds(op, op_s) / microbatches))
        if op.loop is not None:
            layouts.update((v, plan.layouts[v]) for v in op.results)
        else:
            strategy = named(op.rule, plan.mesh_shape, plan.ops[op.id])
            assert strategy is not None
            layouts.update(zip(op.results, strategy.results, strict=True))
    values = step.graph.values
    sizes = {
        v: local_size(values[v].shape, layout, plan.mesh_shape) * item_bytes(values[v].dtype)
        for v, layout in layouts.items()
    }
    return Keeping(units[1] - units[0], tuple(forward), frozenset(read), sizes, recomputable)


def _seconds(op: Op, op_s: Mapping[int, float]) -> float:
    return op_s.get(op.id, 0.0) + sum(_seconds(inner, op_s) for region in op.regions for inner in region.ops)


__all__ = ["Forward", "Keeping", "keeping"]
