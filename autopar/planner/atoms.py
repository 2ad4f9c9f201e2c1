"""The step as a flat list of atoms: everything that chooses a layout.

An atom is an op, or a *port*: a place where one array is handed on unchanged and so must keep one layout
(an input leaf of the state and its successor, a batch leaf, an output, a value entering or leaving a
region, a loop carry). Regions dissolve: their ops become atoms with a frequency.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from autopar.ir import Graph, Loop, Op, Rule, Step, Value, region_ports
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
class Atom:
    """Something that chooses.

    Attributes:
      index: position in the list of atoms.
      kind: ``op``, ``input``, ``constant``, ``output`` or ``port``.
      operands, results: value ids.
      choices: the options.
      frequency: times it runs per step (trip counts of the loops around it).
      op: the op, for ``kind == "op"``; the region op, for ports.
      name: for people.
    """

    index: int
    kind: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    choices: tuple[Choice, ...] = field(repr=False)
    frequency: float
    op: Op | None
    name: str


@dataclass(frozen=True)
class Atoms:
    """All atoms of a step, and who makes and reads each value.

    Attributes:
      atoms: in execution order; inputs first.
      producer: value id -> (atom index, result slot).
      readers: value id -> (atom index, operand slot) pairs.
      frequency: value id -> times it is made per step.
      step: the step they came from.
      mesh: mesh axis sizes the choices are for.
    """

    atoms: tuple[Atom, ...]
    producer: dict[int, tuple[int, int]]
    readers: dict[int, list[tuple[int, int]]]
    frequency: dict[int, float]
    step: Step
    mesh: tuple[int, ...]


def is_late(atom: Atom) -> bool:
    """Whether an atom runs after the forward pass (a converted copy may be made anew for it)."""
    return atom.kind != "constant" and (atom.op is None or atom.op.where.phase != "forward")


def build_atoms(step: Step, mesh: Sequence[int]) -> Atoms:
    """List the atoms of ``step`` on a mesh of axis sizes ``mesh``."""
    builder = _Builder(step, tuple(mesh))
    builder.top()
    producer = {v: (a.index, j) for a in builder.atoms for j, v in enumerate(a.results)}
    readers: dict[int, list[tuple[int, int]]] = {}
    frequency: dict[int, float] = {}
    for atom in builder.atoms:
        for slot, v in enumerate(atom.operands):
            readers.setdefault(v, []).append((atom.index, slot))
        for v in atom.results:
            frequency[v] = builder.value_frequency.get(v, atom.frequency)
    return Atoms(tuple(builder.atoms), producer, readers, frequency, step, tuple(mesh))


class _Builder:
    def __init__(self, step: Step, mesh: tuple[int, ...]) -> None:
        self.step = step
        self.mesh = mesh
        self.values = step.graph.values
        self.atoms: list[Atom] = []
        self.value_frequency: dict[int, float] = {}

    def top(self) -> None:
        graph = self.step.graph
        successor = {i: graph.outputs[o] for i, o in self.step.state}
        stateful = {o for _, o in self.step.state}
        for index, v in enumerate(graph.inputs):
            after = successor.get(index)
            keeps = after is not None and not self.values[after].literal
            reads = [(after, 0)] if after is not None and keeps else []
            self._port("input", self.values[v].name, reads, [(v, 0)], 1.0, None)
        for v in graph.constants:
            self._port("constant", self.values[v].name, [], [(v, 0)], 1.0, None)
        self._graph(graph, 1.0)
        for index, v in enumerate(graph.outputs):
            if index not in stateful and not self.values[v].literal:
                self._port("output", f"output {index}", [(v, 0)], [], 1.0, None)

    def _graph(self, graph: Graph, frequency: float) -> None:
        for op in graph.ops:
            if op.loop is None:
                choices = op_choices(op.rule, self.mesh)
                self._add("op", op.operands, op.results, choices, frequency, op, op.primitive)
            else:
                self._region(op, op.loop, frequency)

    def _region(self, op: Op, loop: Loop, frequency: float) -> None:
        """Ports around and through a region op, and the atoms inside it."""
        inner = frequency * loop.length
        for group in region_ports(op):
            self._port("port", op.primitive, group.reads, group.makes, frequency, op, partial=group.partial)
            for v, _ in group.makes:
                self.value_frequency[v] = frequency if v in op.results else inner
        for region in op.regions:
            self._graph(region, inner)

    def _port(
        self,
        kind: str,
        name: str,
        reads: Sequence[tuple[int, int]],
        makes: Sequence[tuple[int, int]],
        frequency: float,
        op: Op | None,
        partial: bool = False,
    ) -> None:
        reads = [(v, shift) for v, shift in reads if not self.values[v].literal]
        inner = next((v for v, shift in (*reads, *makes) if shift == 0), None)
        if inner is None:
            return
        layouts = port_layouts(self.values[inner], self.mesh, partial)
        choices = tuple(
            Choice(tuple(_shift(x, s) for _, s in reads), tuple(_shift(x, s) for _, s in makes)) for x in layouts
        )
        self._add(kind, tuple(v for v, _ in reads), tuple(v for v, _ in makes), choices, frequency, op, name)

    def _add(
        self,
        kind: str,
        operands: tuple[int, ...],
        results: tuple[int, ...],
        choices: tuple[Choice, ...],
        frequency: float,
        op: Op | None,
        name: str,
    ) -> None:
        literal = [self.values[v].literal for v in operands]
        if any(literal):
            keep = [i for i, is_literal in enumerate(literal) if not is_literal]
            operands = tuple(operands[i] for i in keep)
            choices = tuple(Choice(tuple(c.operands[i] for i in keep), c.results, c.names, c.parallel) for c in choices)
        self.atoms.append(Atom(len(self.atoms), kind, operands, results, choices, frequency, op, name))


@lru_cache(maxsize=10_000)
def op_choices(rule: Rule, mesh: tuple[int, ...]) -> tuple[Choice, ...]:
    """The strategies of an op as choices."""
    return tuple(Choice(s.operands, s.results, s.names, s.parallel) for s in strategies(rule, mesh))


@lru_cache(maxsize=10_000)
def _layouts(shape: tuple[int, ...], mesh: tuple[int, ...], states: tuple[int, ...]) -> tuple[Layout, ...]:
    per_axis = [states if size > 1 else (REPLICATED,) for size in mesh]
    return tuple(x for x in itertools.product(*per_axis) if fits(shape, x, mesh))


def port_layouts(value: Value, mesh: tuple[int, ...], partial: bool) -> tuple[Layout, ...]:
    """Layouts that a port may keep a value in: splits and copies, and partial sums where allowed."""
    if value.dtype.startswith("key<"):
        return ((REPLICATED,) * len(mesh),)
    states = (REPLICATED, *(d for d, n in enumerate(value.shape) if n > 1))
    if partial and value.dtype != "bool":
        states = (*states, SUM)
    return _layouts(value.shape, mesh, states)


def _shift(layout: Layout, by: int) -> Layout:
    return tuple(p + by if p >= 0 else p for p in layout) if by else layout


__all__ = ["Atom", "Atoms", "Choice", "build_atoms", "is_late", "op_choices", "port_layouts"]
