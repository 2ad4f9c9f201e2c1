"""Say the same computation once.

XLA merges equal instructions, collectives among them. Merged here first, they are planned and priced as they run:
a gradient norm that both the clipping and the metrics ask for owes one all-reduce, not two.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from autopar.ir import Graph, Op, Value, region_ports

_COMMUTATIVE = frozenset({"add", "add_any", "mul", "max", "min", "and", "or", "xor", "eq", "ne"})
_PHASES = ("", "forward", "backward", "update")


def without_repeats(graph: Graph) -> Graph:
    """``graph`` with one op for equal primitives, parameters and operands; the first one's source line stays.

    What lies behind an ``optimization_barrier`` is meant to be recomputed and stays apart. Operands of commutative ops
    may be swapped, as XLA does.
    """
    return _Merger(graph.values).graph(graph, {})


@dataclass
class _Merger:
    values: Mapping[int, Value]
    renamed: dict[int, int] = field(default_factory=dict)  # a repeated value -> the one that stays

    def graph(self, graph: Graph, entering: Mapping[int, int]) -> Graph:
        """Merge inside one graph; ``entering``: region input -> an earlier input that holds the same array."""
        self.renamed.update(entering)
        first: dict[Hashable, int] = {}  # what an op computes -> its position in ops
        ops: list[Op] = []
        for op in graph.ops:
            op = self._inside(op)
            what = self._what(op)
            like = first.setdefault(what, len(ops))
            if like < len(ops):
                ops[like] = _at_earlier_phase(ops[like], op)
                self.renamed.update(zip(op.results, ops[like].results, strict=True))
                continue
            ops.append(op)
            self._merge_stacked(op)
        return replace(graph, ops=tuple(ops), outputs=tuple(self._now(v) for v in graph.outputs))

    def _inside(self, op: Op) -> Op:
        """An op that reads the values that stay, also in its regions."""
        op = replace(op, operands=tuple(self._now(v) for v in op.operands))
        if not op.regions:
            return op
        region_of = {v: k for k, region in enumerate(op.regions) for v in region.inputs}
        entering: dict[int, int] = {}
        known: dict[tuple[int, int, int], int] = {}
        for port in region_ports(op):
            if len(port.reads) == 1 and port.reads[0][0] in op.operands:  # it enters and does not change: no carry
                for inner, _ in port.makes:
                    entering[inner] = known.setdefault((*port.reads[0], region_of[inner]), inner)
        return replace(op, regions=tuple(self.graph(region, entering) for region in op.regions))

    def _merge_stacked(self, op: Op) -> None:
        """A loop that stacks one value twice makes one array twice."""
        if op.loop is None or op.loop.kind != "scan":
            return
        known: dict[int, int] = {}
        for inner, outer in zip(op.regions[0].outputs[op.loop.carry :], op.results[op.loop.carry :], strict=True):
            self.renamed[outer] = known.setdefault(inner, outer)

    def _what(self, op: Op) -> Hashable:
        """What an op computes; a barrier is like no other."""
        if op.primitive == "optimization_barrier":
            return op.id
        operands = tuple(sorted(op.operands)) if op.primitive in _COMMUTATIVE else op.operands
        made = tuple((self.values[v].shape, self.values[v].dtype) for v in op.results)
        return op.primitive, op.params, operands, made

    def _now(self, v: int) -> int:
        return self.renamed.get(v, v)


def _at_earlier_phase(op: Op, repeated: Op) -> Op:
    """The op that stays, in the earlier of both phases if jax marked it with one; a loop keeps its own."""
    if op.regions or _PHASES.index(op.where.phase) <= _PHASES.index(repeated.where.phase):
        return op
    return op if not repeated.where.phase else replace(op, where=replace(op.where, phase=repeated.where.phase))
