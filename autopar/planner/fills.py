"""Fills, arrays computed from scalars and counting alone, are never communicated: each device makes what it reads.

The program prices a fill that is made in parts and gathered at next to nothing, so within its gap it may say so; a
compiler sees through it, and the plan would not be what runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from autopar.ir import Kind
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.conversion import Conversions
from autopar.sharding.layout import LOCAL

_MAKERS = frozenset({"broadcast_in_dim", "iota"})


def settle_fills(atoms: Atoms, choices: Sequence[int], conversions: Conversions) -> tuple[int, ...]:
    """The choices, where a fill would be communicated replaced by one from which its readers only slice.

    Args:
      atoms: the step, on a mesh.
      choices: atom index -> option.
      conversions: prices of conversions on that mesh.
    """
    settled = list(choices)
    for atom in reversed(_fills(atoms)):  # readers before what they read
        if _communicates(atoms, atom, settled[atom.index], settled, conversions):
            options = range(len(atoms.choices(atom)))
            quiet = (k for k in options if not _communicates(atoms, atom, k, settled, conversions))
            settled[atom.index] = next(quiet, settled[atom.index])
    return tuple(settled)


def _fills(atoms: Atoms) -> list[Atom]:
    values = atoms.step.graph.values
    found: dict[int, Atom] = {}
    for atom in atoms.atoms:
        op = atom.op
        if atom.kind != "op" or op is None or not values[atom.results[0]].shape:
            continue
        elementwise = len(atom.results) == 1 and all(f.kind is Kind.PARALLEL for f in op.rule.factors)
        if (elementwise or op.primitive in _MAKERS) and all(v in found or not values[v].shape for v in atom.operands):
            found[atom.results[0]] = atom
    return list(found.values())


def _communicates(atoms: Atoms, atom: Atom, k: int, choices: Sequence[int], conversions: Conversions) -> bool:
    """Whether some reader needs a collective if the fill is made by its choice ``k``."""
    (v,) = atom.results
    made = atoms.choices(atom)[k].results[0]
    for reader, slot in atoms.readers.get(v, ()):
        wanted = atoms.choices(atoms.atoms[reader])[choices[reader]].operands[slot]
        if wanted != made:
            _, arcs = conversions.tree(atoms.step.graph.values[v], made, (wanted,))
            if not arcs or any(move.kind not in LOCAL for _, move in arcs):
                return True
    return False


__all__ = ["settle_fills"]
