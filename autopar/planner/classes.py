"""Tie repeated layers: atoms that do the same in every layer choose the same.

A class is a set of atoms with one common choice. Atoms are alike when they run the same code (primitive,
parameters, shapes, and the user's call stack: a loop over layers runs one stack many times). Arguments
and update ops have no layer of their own, so they are told apart by what they read and by who reads them,
until no class splits further.

Tying never makes a plan wrong, it only makes neighbours agree; small steps are not tied at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from autopar.ir import Value
from autopar.planner.atoms import Atom, Atoms

_MAX_ROUNDS = 12


@dataclass(frozen=True)
class Classes:
    """A partition of the atoms.

    Attributes:
      of: atom index -> class index.
      members: class index -> atom indices, first is the representative.
    """

    of: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


def untied(atoms: Atoms) -> Classes:
    """Every atom alone."""
    n = len(atoms.atoms)
    return Classes(tuple(range(n)), tuple((i,) for i in range(n)))


def tie(atoms: Atoms, labels: Mapping[int, Hashable] | None = None) -> Classes:
    """Repeated atoms together.

    Args:
      atoms: of the step.
      labels: of some atoms; atoms of different labels are kept apart.
    """
    values = atoms.step.graph.values
    about = labels or {}
    colors = [hash((_local_key(atom, values), about.get(atom.index))) for atom in atoms.atoms]
    refinable = [_refinable(atom, values) for atom in atoms.atoms]
    count = len(set(colors))
    for _ in range(_MAX_ROUNDS):
        colors = [
            hash((colors[a.index], _neighbours(a, atoms, colors))) if refinable[a.index] else colors[a.index]
            for a in atoms.atoms
        ]
        if len(set(colors)) == count:
            break
        count = len(set(colors))
    index: dict[int, int] = {}
    members: list[list[int]] = []
    of = []
    for atom, color in zip(atoms.atoms, colors, strict=True):
        c = index.setdefault(color, len(index))
        if c == len(members):
            members.append([])
        members[c].append(atom.index)
        of.append(c)
    return Classes(tuple(of), tuple(map(tuple, members)))


def _local_key(atom: Atom, values: dict[int, Value] | object) -> tuple[object, ...]:
    types = tuple((values[v].shape, values[v].dtype) for v in (*atom.operands, *atom.results))  # type: ignore[index]
    op = atom.op
    code = (op.primitive, op.params, op.where.stack, op.where.phase) if op else ()
    return (atom.kind, types, atom.frequency, code, atom.menu)


def _refinable(atom: Atom, values: dict[int, Value] | object) -> bool:
    """Inputs, and update ops on arrays (chains of scalars would split into a class per link)."""
    if atom.kind in ("input", "constant", "output"):
        return True
    arrays = any(values[v].shape for v in atom.results)  # type: ignore[index]
    return atom.kind == "op" and atom.op is not None and atom.op.where.phase == "update" and arrays


def _neighbours(atom: Atom, atoms: Atoms, colors: list[int]) -> tuple[object, ...]:
    if atom.kind == "input":
        who = {(j, colors[r], slot) for j, v in enumerate(atom.results) for r, slot in atoms.readers.get(v, ())}
        return tuple(sorted(who))
    made_by = ((atoms.producer[v][0], atoms.producer[v][1]) for v in atom.operands)
    return tuple((colors[p], slot) for p, slot in made_by)
