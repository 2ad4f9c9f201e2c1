"""The step as a flat list of atoms: everything that chooses a layout.

An atom is an op, or a *port*: a place where one array is handed on unchanged and so must keep one layout
(an input leaf of the state and its successor, a batch leaf, an output, a value entering or leaving a
region, a loop carry). Regions dissolve: their ops become atoms with a frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autopar.ir import Graph, Loop, Op, Step, region_ports
from autopar.planner.menu import Choice, Menu, OpMenu, PortMenu


@dataclass(frozen=True)
class Atom:
    """Something that chooses.

    Attributes:
      index: position in the list of atoms.
      kind: ``op``, ``input``, ``constant``, ``output`` or ``port``.
      operands, results: value ids.
      menu: index of what it chooses from, see :meth:`Atoms.choices`.
      frequency: times it runs per step (trip counts of the loops around it).
      op: the op, for ``kind == "op"``; the region op, for ports.
      name: for people.
    """

    index: int
    kind: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    menu: int
    frequency: float
    op: Op | None
    name: str


@dataclass(frozen=True)
class Atoms:
    """All atoms of a step, who makes and reads each value, and what they choose from on one mesh.

    Attributes:
      atoms: in execution order; inputs first.
      producer: value id -> (atom index, result slot).
      readers: value id -> (atom index, operand slot) pairs.
      frequency: value id -> times it is made per step.
      ends: region op -> index of the last atom in it.
      step: the step they came from.
      menus: what atoms choose from, each kind once.
      mesh: mesh axis sizes of the choices.
    """

    atoms: tuple[Atom, ...]
    producer: dict[int, tuple[int, int]]
    readers: dict[int, list[tuple[int, int]]]
    frequency: dict[int, float]
    ends: dict[int, int]
    step: Step
    menus: tuple[Menu, ...] = field(repr=False)
    mesh: tuple[int, ...] = ()
    _choices: dict[int, tuple[Choice, ...]] = field(default_factory=dict, repr=False)

    def on(self, mesh: Sequence[int]) -> Atoms:
        """The same atoms with their choices on another mesh."""
        return replace(self, mesh=tuple(mesh), _choices={})

    def choices(self, atom: Atom) -> tuple[Choice, ...]:
        """The options of an atom on this mesh."""
        found = self._choices.get(atom.menu)
        if found is None:
            found = self._choices[atom.menu] = self.menus[atom.menu].on(self.mesh)
        return found


def is_late(atom: Atom) -> bool:
    """Whether an atom runs after the forward pass (a converted copy may be made anew for it)."""
    return atom.kind != "constant" and (atom.op is None or atom.op.where.phase != "forward")


def build_atoms(step: Step) -> Atoms:
    """List the atoms of ``step``."""
    builder = _Builder(step)
    builder.top()
    producer = {v: (a.index, j) for a in builder.atoms for j, v in enumerate(a.results)}
    readers: dict[int, list[tuple[int, int]]] = {}
    frequency: dict[int, float] = {}
    for atom in builder.atoms:
        for slot, v in enumerate(atom.operands):
            readers.setdefault(v, []).append((atom.index, slot))
        for v in atom.results:
            frequency[v] = builder.value_frequency.get(v, atom.frequency)
    return Atoms(tuple(builder.atoms), producer, readers, frequency, builder.ends, step, tuple(builder.menus))


class _Builder:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.menus: dict[Menu, int] = {}
        self.values = step.graph.values
        self.atoms: list[Atom] = []
        self.value_frequency: dict[int, float] = {}
        self.ends: dict[int, int] = {}

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
                kept = tuple(i for i, v in enumerate(op.operands) if not self.values[v].literal)
                operands = tuple(op.operands[i] for i in kept)
                self._add("op", operands, op.results, OpMenu(op.rule, kept), frequency, op, op.primitive)
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
        self.ends[op.id] = len(self.atoms) - 1

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
        value = self.values[inner]
        menu = PortMenu(value.shape, value.dtype, partial, tuple(s for _, s in reads), tuple(s for _, s in makes))
        self._add(kind, tuple(v for v, _ in reads), tuple(v for v, _ in makes), menu, frequency, op, name)

    def _add(
        self,
        kind: str,
        operands: tuple[int, ...],
        results: tuple[int, ...],
        menu: Menu,
        frequency: float,
        op: Op | None,
        name: str,
    ) -> None:
        index = self.menus.setdefault(menu, len(self.menus))
        self.atoms.append(Atom(len(self.atoms), kind, operands, results, index, frequency, op, name))


__all__ = ["Atom", "Atoms", "build_atoms", "is_late"]
