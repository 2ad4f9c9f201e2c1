"""Restricted strategies: the parallelisms people name, as subsets of the search space.

Batch and expert factors are those of :mod:`.factors`.

==========  ======================================================  ==================================
strategy    ops                                                     state
==========  ======================================================  ==================================
data        batch factor on every axis, else repeated               replicated
fsdp        batch factor on every axis, else anything               split on every axis where possible
megatron    axis 0 as ``data``; other axes anything but the batch   replicated on axis 0
expert      batch or expert factors on every axis                   split along experts, else replicated
==========  ======================================================  ==================================
"""

from __future__ import annotations

from autopar.planner.atoms import Atom, Atoms
from autopar.planner.factors import Factors
from autopar.planner.menu import Choice
from autopar.sharding.layout import REPLICATED
from autopar.sharding.strategy import REPEAT


class Restriction:
    """Which choices of each atom a strategy allows."""

    def __init__(self, atoms: Atoms, strategy: str) -> None:
        self.strategy = strategy
        self.atoms = atoms
        self.mesh = atoms.mesh
        graph = atoms.step.graph
        self.factors = Factors(atoms)
        self.state = self.factors.state
        self.fed = {graph.inputs[i] for i in atoms.step.batch}
        self.batch = self.factors.batch if strategy != "auto" else set()
        self.experts = self.factors.experts if strategy == "expert" else set()

    def allowed(self, atom: Atom) -> tuple[int, ...]:
        """Indices of the allowed choices, never empty."""
        if self.strategy == "auto":
            return tuple(range(len(self.atoms.choices(atom))))
        if atom.kind == "op":
            found = self._op(atom)
        elif atom.kind in ("input", "constant"):
            found = self._argument(atom)
        else:
            found = list(range(len(self.atoms.choices(atom))))
        return tuple(found) or self._repeat(atom)

    def _repeat(self, atom: Atom) -> tuple[int, ...]:
        plain = [
            i
            for i, c in enumerate(self.atoms.choices(atom))
            if all(p == REPLICATED for x in (*c.operands, *c.results) for p in x)
        ]
        return tuple(plain) or tuple(range(len(self.atoms.choices(atom))))

    def _op(self, atom: Atom) -> list[int]:
        batch = self.factors.tagged(atom, self.batch)
        experts = self.factors.tagged(atom, self.experts)
        free = {REPEAT}
        wide = [n > 1 for n in self.mesh]

        def fits(c: Choice) -> bool:
            for axis, name in enumerate(c.names):
                passes = name in free or name.startswith("+")
                if self.strategy == "fsdp" or (self.strategy == "megatron" and axis > 0):
                    ok = name not in batch if self.strategy == "megatron" else True
                else:
                    ok = passes or name in batch or (self.strategy == "expert" and name in experts)
                if not ok:
                    return False
            return True

        found = [i for i, c in enumerate(self.atoms.choices(atom)) if fits(c)]
        if self.strategy == "expert":
            full = [
                i
                for i in found
                if all(
                    n in batch or n in experts
                    for n, w in zip(self.atoms.choices(atom)[i].names, wide, strict=True)
                    if w
                )
            ]
            return full or found
        axes = [0] if self.strategy == "megatron" and len(self.mesh) > 1 else range(len(self.mesh))
        if self.strategy == "megatron" and len(self.mesh) == 1:
            return [i for i, c in enumerate(self.atoms.choices(atom)) if all(n not in batch for n in c.names)]
        full = [i for i in found if all(self.atoms.choices(atom)[i].names[a] in batch for a in axes if wide[a])]
        return full if batch and full else found

    def _argument(self, atom: Atom) -> list[int]:
        v = atom.results[0]
        layouts = [c.results[0] for c in self.atoms.choices(atom)]
        every = range(len(layouts))
        if atom.kind == "input" and v not in self.state and v not in self.fed:
            return list(every)
        if v not in self.state:
            return [i for i in every if all(p == REPLICATED or (v, p) in self.batch for p in layouts[i])] or list(every)
        if self.strategy == "data":
            return [i for i in every if all(p == REPLICATED for p in layouts[i])]
        if self.strategy == "fsdp":
            most = max(sum(p >= 0 for p in x) for x in layouts)
            return [i for i in every if sum(p >= 0 for p in layouts[i]) == most]
        if self.strategy == "expert":
            return [i for i in every if all(p == REPLICATED or (v, p) in self.experts for p in layouts[i])]
        if len(self.mesh) == 1:
            return list(every)
        return [i for i in every if layouts[i][0] == REPLICATED]


def heavy_work_divided(atoms: Atoms, atom: Atom) -> tuple[int, ...]:
    """Choices that repeat no matrix product or convolution more than its best choice does."""
    if atom.op is None or atom.op.primitive not in ("dot_general", "conv_general_dilated"):
        return tuple(range(len(atoms.choices(atom))))
    most = max(c.parallel for c in atoms.choices(atom))
    return tuple(i for i, c in enumerate(atoms.choices(atom)) if c.parallel == most)
