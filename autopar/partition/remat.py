"""Which ops of the forward pass may run again in the backward pass, and for which unit."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopar.ir import ATTENTION, FULL, NONE, Op, Step
from autopar.partition.cores import attention_cores
from autopar.partition.loop_stages import backward_ops, forward_ops
from autopar.partition.timing import Timing
from autopar.partition.units import Unit, joints


@dataclass(frozen=True)
class Recomputable:
    """What rematerialisation of each unit means.

    Attributes:
      units: id of an op of the forward pass -> the units that it works for, ascending. An op that belongs to no stage
        (:func:`autopar.partition.loop_stages.floating_ops`) works for all that read it.
      joints: ids of ops whose results pass from one unit into a later one: these are never computed again.
      cores: ids of ops of the cores of attention.
    """

    units: Mapping[int, tuple[int, ...]] = field(repr=False)
    joints: frozenset[int] = field(repr=False)
    cores: frozenset[int] = field(repr=False)

    def again(self, op: int, remat: str) -> bool:
        """Whether an op runs again if its unit is treated so."""
        return op not in self.joints and (remat == FULL or (remat == ATTENTION and op in self.cores))

    def unit(self, op: int, first: int, stop: int) -> int:
        """The unit of the stage ``first .. stop - 1`` that an op runs again for: the first it works for."""
        return next((u for u in self.units.get(op, ()) if first <= u < stop), first)

    def dropped(self, first: int, remat: Sequence[str]) -> frozenset[int]:
        """Ids of the ops that run again in a stage; -1 stands for what belongs to no op of the step.

        Args:
          first: its first unit.
          remat: how each of its units is treated.
        """
        if all(word == NONE for word in remat):
            return frozenset()
        stop = first + len(remat)
        ops = (-1, *self.units)
        return frozenset(op for op in ops if self.again(op, remat[self.unit(op, first, stop) - first]))


def recomputable(step: Step, timing: Timing, units: Sequence[Unit]) -> Recomputable:
    """What may run again, for units that are cut out of a step's forward pass."""
    begins = [u.begin for u in units]
    found = {op.id: {bisect.bisect(begins, k) - 1} for k, op in enumerate(forward_ops(step, timing))}
    backward = backward_ops(timing)
    forward = [op for op in timing.loop if op.id not in backward]
    _spread(forward, found)
    return Recomputable(
        {i: tuple(sorted(those)) for i, those in found.items()},
        joints(step, timing, units),
        attention_cores(step, timing),
    )


def _spread(forward: Sequence[Op], found: dict[int, set[int]]) -> None:
    """Give ops without a unit those of their readers."""
    readers: dict[int, set[int]] = {}
    for op in reversed(forward):
        if op.id not in found:
            found[op.id] = set().union(*(readers.get(v, set()) for v in op.results))
        for v in op.operands:
            readers.setdefault(v, set()).update(found[op.id])


__all__ = ["Recomputable", "recomputable"]
