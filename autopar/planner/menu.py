"""What an atom may choose from: options that exist on any mesh, made concrete on one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.ir import Rule
from autopar.sharding.layout import REPLICATED, SUM, Layout, fits
from autopar.sharding.strategy import strategies


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of an atom.

    Attributes:
      operands: layout wanted of each operand.
      results: layout in which each result is made.
      names: action names (ops), empty for ports.
      parallel: devices that share the work.
    """

    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]
    names: tuple[str, ...] = ()
    parallel: int = 1


@dataclass(frozen=True)
class OpMenu:
    """The strategies of an op. ``kept``: its operands that are no literals."""

    rule: Rule
    kept: tuple[int, ...]

    def on(self, mesh: tuple[int, ...]) -> tuple[Choice, ...]:
        """The choices on a mesh of these axis sizes."""
        return tuple(
            Choice(tuple(s.operands[i] for i in self.kept), s.results, s.names, s.parallel)
            for s in strategies(self.rule, mesh)
        )


@dataclass(frozen=True)
class PortMenu:
    """One layout for all ends of a port, up to the leading stacked dims of each end.

    Attributes:
      shape, dtype: of the array without stacked dims.
      partial: whether it may be handed on as a partial sum.
      reads, makes: stacked dims of each end.
    """

    shape: tuple[int, ...]
    dtype: str
    partial: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def on(self, mesh: tuple[int, ...]) -> tuple[Choice, ...]:
        """The choices on a mesh of these axis sizes."""
        return tuple(
            Choice(tuple(_shift(x, s) for s in self.reads), tuple(_shift(x, s) for s in self.makes))
            for x in self._layouts(mesh)
        )

    def _layouts(self, mesh: Sequence[int]) -> list[Layout]:
        if self.dtype.startswith("key<"):
            return [(REPLICATED,) * len(mesh)]
        states = (REPLICATED, *(d for d, n in enumerate(self.shape) if n > 1))
        if self.partial and self.dtype != "bool":
            states = (*states, SUM)
        per_axis = [states if size > 1 else (REPLICATED,) for size in mesh]
        return [x for x in itertools.product(*per_axis) if fits(self.shape, x, mesh)]


Menu = OpMenu | PortMenu


def _shift(layout: Layout, by: int) -> Layout:
    return tuple(p + by if p >= 0 else p for p in layout) if by else layout
