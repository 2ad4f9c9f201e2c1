"""One op inside ``shard_map``: where this device stands, and the shapes of its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax import Array, lax

from autopar import ir
from autopar.ir import Kind
from autopar.sharding.layout import Layout, local_shape
from autopar.sharding.strategy import Strategy

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axes:
    """The axes over which arrays are split, and where on them the parts are that are computed here.

    Attributes:
      names: axis names, in order; as ``shard_map`` names them, if they are mesh axes.
      sizes: their sizes.
      positions: where on each axis; None is this device's place on the mesh axis.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    positions: tuple[Array | int, ...] | None = None

    def position(self, axis: int) -> Array | int:
        """Where on axis number ``axis`` the parts are."""
        return lax.axis_index(self.names[axis]) if self.positions is None else self.positions[axis]

    def offset(self, layout: Layout, shape: Sequence[int], dim: int) -> Array | int:
        """First index along ``dim`` of this device's part of an array of global ``shape``; 0 if not split."""
        position: Array | int = 0
        for axis, (size, placement) in enumerate(zip(self.sizes, layout, strict=True)):
            if placement == dim:
                position = position * size + self.position(axis)
        return position * local_shape(shape, layout, self.sizes)[dim]


@dataclass(frozen=True)
class Local:
    """An op as one device sees it.

    Attributes:
      op: the op, with its rule.
      primitive: the jax primitive.
      params: parameters of the whole op.
      strategy: how it is split.
      axes: the mesh.
      operands, results: global shapes.
    """

    op: ir.Op
    primitive: Any
    params: Mapping[str, Any]
    strategy: Strategy
    axes: Axes
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]

    def operand_shape(self, index: int = 0) -> Shape:
        """Shape of this device's part of an operand."""
        return local_shape(self.operands[index], self.strategy.operands[index], self.axes.sizes)

    def result_shape(self, index: int = 0) -> Shape:
        """Shape of this device's part of a result."""
        return local_shape(self.results[index], self.strategy.results[index], self.axes.sizes)

    def operand_offset(self, index: int, dim: int) -> Array | int:
        """Where this device's part of an operand starts along ``dim``."""
        return self.axes.offset(self.strategy.operands[index], self.operands[index], dim)

    def result_offset(self, index: int, dim: int) -> Array | int:
        """Where this device's part of a result starts along ``dim``."""
        return self.axes.offset(self.strategy.results[index], self.results[index], dim)

    def is_split(self, index: int, dim: int) -> bool:
        """Whether some axis splits ``dim`` of an operand."""
        return dim in self.strategy.operands[index]

    def first_of_reduction(self) -> Array | bool:
        """Whether this device is the first along every axis over which it makes a partial result."""
        first: Array | bool = True
        for axis, action in enumerate(self.strategy.actions):
            if action.factor is not None and self.op.rule.factors[action.factor].kind is Kind.REDUCTION:
                first = (self.axes.position(axis) == 0) & first
        return first

    def bind(self, operands: Sequence[Array], **changed: Any) -> list[Array]:
        """Apply the primitive to local parts, with some parameters replaced by their local values."""
        # Shardings of the user's program refer to the user's mesh; here every axis is manual.
        dropped = {k: None for k in ("sharding", "out_sharding") if k in self.params}
        out = self.primitive.bind(*operands, **{**self.params, **dropped, **changed})
        return list(out) if self.primitive.multiple_results else [out]
