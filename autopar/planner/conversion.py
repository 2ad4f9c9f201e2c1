"""The steps between layouts of one value, priced, and the cheapest way to serve all its readers.

The conversion graph of a value has its layouts as nodes and single-axis moves as arcs. A conversion is a
path; the conversions of one value to all layouts that its readers want share arcs, each paid once: a
tree from the layout the value is made in.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from autopar.cost import collective_s
from autopar.ir import Value, item_bytes
from autopar.mesh import Device, LogicalMesh
from autopar.sharding.layout import LOCAL, SUM, Collective, Layout, Move, is_partial, local_size, moves

Arc = tuple[Layout, Move]

_FREE_ARC_S = 1e-12  # a tie-break in favour of fewer local steps; below any real cost


def moved_bytes(shape: Sequence[int], dtype: str, src: Layout, move: Move, mesh: Sequence[int]) -> int:
    """Bytes on one device of the larger side of a move: what its collective is priced by."""
    elements = max(local_size(shape, src, mesh), local_size(shape, move.apply(src), mesh))
    return elements * item_bytes(dtype)


@dataclass(frozen=True)
class ConversionGraph:
    """All layouts reachable from any layout of one shape and dtype on one mesh, and the priced arcs."""

    shape: tuple[int, ...]
    dtype: str
    mesh: tuple[int, ...]
    arcs: dict[Layout, tuple[tuple[Move, Layout, float], ...]] = field(repr=False)

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Every layout, partial ones included."""
        return tuple(self.arcs)

    @cached_property
    def whole(self) -> tuple[Layout, ...]:
        """Every layout without partial sums."""
        return tuple(layout for layout in self.arcs if not is_partial(layout))


class Conversions:
    """Conversion graphs and trees on one logical mesh, cached by shape and dtype."""

    def __init__(self, mesh: LogicalMesh, device: Device) -> None:
        self.mesh = mesh
        self.device = device
        self._graphs: dict[tuple[tuple[int, ...], str], ConversionGraph] = {}
        self._trees: dict[object, tuple[float, tuple[Arc, ...]]] = {}
        self._reach: dict[object, frozenset[Arc]] = {}

    def graph(self, value: Value) -> ConversionGraph:
        """The conversion graph of a value."""
        key = (value.shape, value.dtype)
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = self._build(*key)
        return found

    def seconds(self, value: Value, src: Layout, move: Move) -> float:
        """Time of one move of ``value``."""
        kind = move.kind
        if kind in LOCAL:
            return 0.0
        nbytes = moved_bytes(value.shape, value.dtype, src, move, self.mesh.shape)
        return collective_s(kind, self.mesh.axes[move.axis], nbytes)

    def _build(self, shape: tuple[int, ...], dtype: str) -> ConversionGraph:
        mesh = self.mesh.shape
        splittable = not dtype.startswith("key<")
        start: Layout = (-1,) * len(mesh)
        arcs: dict[Layout, tuple[tuple[Move, Layout, float], ...]] = {}
        todo = [start]
        value = Value(0, shape, dtype)
        while todo:
            layout = todo.pop()
            if layout in arcs:
                continue
            out = []
            for move in moves(shape, layout, mesh) if splittable else ():
                target = move.apply(layout)
                if move.kind is Collective.FILL and not _summable(dtype):
                    continue
                cost = self.seconds(value, layout, move) or _FREE_ARC_S
                out.append((move, target, cost))
                todo.append(target)
            arcs[layout] = tuple(out)
        return ConversionGraph(shape, dtype, mesh, arcs)

    def outgoing(self, value: Value, layout: Layout) -> tuple[tuple[Move, Layout, float], ...]:
        """Arcs leaving a layout (max and min partials, which no FILL makes, are added on demand)."""
        graph = self.graph(value)
        found = graph.arcs.get(layout)
        if found is None:
            found = tuple(
                (move, move.apply(layout), self.seconds(value, layout, move) or _FREE_ARC_S)
                for move in moves(value.shape, layout, self.mesh.shape)
                if move.kind is not Collective.FILL
            )
            graph.arcs[layout] = found
        return found

    def tree(self, value: Value, made: Layout, wanted: Collection[Layout]) -> tuple[float, tuple[Arc, ...]]:
        """The cheapest set of arcs from ``made`` that reaches every wanted layout, in executable order.

        Exact for up to three conversions; beyond that, terminals are joined in the best of a few orders.

        Returns:
          (seconds, arcs). Seconds is infinite when a layout cannot be reached.
        """
        targets = frozenset(wanted) - {made}
        if not targets:
            return 0.0, ()
        key = (value.shape, value.dtype, made, targets)
        found = self._trees.get(key)
        if found is None:
            orders = itertools.islice(itertools.permutations(sorted(targets)), 24)
            found = self._trees[key] = min((self._join(value, made, order) for order in orders), key=lambda t: t[0])
        return found

    def _join(self, value: Value, made: Layout, order: Sequence[Layout]) -> tuple[float, tuple[Arc, ...]]:
        have: dict[Layout, None] = {made: None}
        arcs: list[Arc] = []
        total = 0.0
        for target in order:
            cost, path = self._shortest(value, have, target)
            total += cost
            for src, move in path:
                arcs.append((src, move))
                have[move.apply(src)] = None
        return total, tuple(arcs)

    def _shortest(self, value: Value, have: Collection[Layout], target: Layout) -> tuple[float, list[Arc]]:
        best = dict.fromkeys(have, 0.0)
        via: dict[Layout, Arc] = {}
        heap = [(0.0, layout) for layout in have]
        heapq.heapify(heap)
        while heap:
            cost, layout = heapq.heappop(heap)
            if layout == target:
                path = []
                while layout in via:
                    path.append(via[layout])
                    layout = via[layout][0]
                return cost, path[::-1]
            if cost > best[layout]:
                continue
            for move, reached, step in self.outgoing(value, layout):
                if cost + step < best.get(reached, math.inf):
                    best[reached] = cost + step
                    via[reached] = (layout, move)
                    heapq.heappush(heap, (cost + step, reached))
        return math.inf, []


def _summable(dtype: str) -> bool:
    return dtype != "bool" and not dtype.startswith("key<")


__all__ = ["SUM", "Arc", "ConversionGraph", "Conversions", "moved_bytes"]
