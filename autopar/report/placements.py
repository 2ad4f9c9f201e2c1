"""How the arrays of a plan lie, in the words of models: ``by heads over y``, ``ZeRO-3 over x``, ``whole``.

A plan knows names, shapes and layouts, and no names of dims. What a dim is called is read from these where they leave
no doubt; elsewhere it is rows, columns, or its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.plan import Argument, PlanFacts
from autopar.report.dimensions import heads_dim, in_attention, is_expert, vocabulary_dim
from autopar.report.words import (
    AxisUse,
    axis_uses,
    by_kind,
    is_gathered,
    local_nbytes,
    parameter_of,
)
from autopar.sharding.layout import dims
from autopar.sharding.words import layout_text

SAME = "same"


@dataclass(frozen=True, slots=True)
class Placed:
    """An array, and the optimizer state that follows it.

    Attributes:
      argument: the array.
      words: how it lies.
      state: how its optimizer state lies: ``same``, or what is different; empty if it has none.
      local_bytes: on one device, with its optimizer state.
    """

    argument: Argument
    words: str
    state: str
    local_bytes: int


def placed(plan: PlanFacts, *, sizes: bool = False) -> tuple[Placed, ...]:
    """Every argument of a plan of one mesh, except for optimizer state that follows a parameter.

    Args:
      plan: without stages, or that of a stage.
      sizes: with the number of devices along each axis: ``by heads over y=4``.
    """
    writer = _Writer(plan, sizes)
    owner = parameter_of(plan)
    followers: dict[str, list[Argument]] = {}
    for leaf in by_kind(plan, "optimizer"):
        if leaf.name in owner:
            followers.setdefault(owner[leaf.name].name, []).append(leaf)
    found = []
    for a in plan.arguments:
        if a.kind == "optimizer" and a.name in owner:
            continue
        states = followers.get(a.name, []) if a.kind == "parameter" else []
        words = dict.fromkeys(writer.state(a, s) for s in states)
        local = sum(local_nbytes(x, plan.mesh_shape) for x in (a, *states))
        found.append(Placed(a, writer.array(a), "; ".join(words), local))
    return tuple(found)


class _Writer:
    """Writes the layouts of one plan."""

    def __init__(self, plan: PlanFacts, sizes: bool) -> None:
        self._plan = plan
        self._axes = tuple(f"{a.name}={a.size}" if sizes else a.name for a in plan.mesh)
        self._uses: Mapping[str, AxisUse] = {use.name: use for use in axis_uses(plan)}
        self._heads = {a.shape[i : i + 2] for a in plan.arguments if (i := heads_dim(a)) is not None}

    def array(self, a: Argument) -> str:
        """How an array lies."""
        gathered = self._gathered(a)
        found = []
        for dim, over in enumerate(dims(a.layout, len(a.shape))):
            kept = [axis for axis in over if axis not in gathered]
            if kept:
                found.append(f"{self._dim(a, dim, kept[0])} over {self._over(kept)}")
        if gathered:
            found.append(f"ZeRO-3 over {self._over(gathered)}")
        return ", ".join(found) or "whole"

    def state(self, parameter: Argument, state: Argument) -> str:
        """How optimizer state lies, as far as it differs from its parameter."""
        if state.layout == parameter.layout:
            return SAME
        pairs = list(enumerate(zip(parameter.layout, state.layout, strict=True)))
        differ = [axis for axis, (one, other) in pairs if one != other]
        if any(parameter.layout[axis] >= 0 for axis in differ):
            return layout_text(state.layout, len(state.shape), self._axes)
        zeros: dict[str, list[int]] = {}
        for axis in differ:
            zeros.setdefault(self._uses[self._plan.mesh[axis].name].zero, []).append(axis)
        return ", ".join(f"{zero} over {self._over(over)}" for zero, over in zeros.items())

    def _gathered(self, a: Argument) -> list[int]:
        if a.kind != "parameter":
            return []
        split = (axis for axis, dim in enumerate(a.layout) if dim >= 0 and self._plan.mesh[axis].size > 1)
        return [axis for axis in split if is_gathered(a, axis, self._plan)]

    def _over(self, axes: Sequence[int]) -> str:
        return " and ".join(self._axes[axis] for axis in axes)

    def _dim(self, a: Argument, dim: int, axis: int) -> str:
        """What a dim of an array is called."""
        rank = len(a.shape)
        if a.kind == "batch":
            return "by examples" if dim == 0 else "by positions" if rank == 2 and "int" in a.dtype else f"by dim {dim}"
        bias = rank == 2 and dim == 0 and in_attention(a) and a.shape in self._heads
        if bias or dim == heads_dim(a):
            return "by heads"
        use = self._uses.get(self._plan.mesh[axis].name)
        if dim == 0 and is_expert(a, axis, use is not None and use.exchanged):
            return "by experts"
        if dim == vocabulary_dim(a):
            return "by vocabulary"
        return ("by rows", "by columns")[dim] if rank == 2 else "split" if rank == 1 else f"by dim {dim}"


__all__ = ["SAME", "Placed", "placed"]
