"""Restricted strategies: the parallelisms people name, as subsets of the search space.

A factor is a *batch factor* if it lies along the leading dim of the step's batch arguments, an *expert
factor* if it lies along a parameter dim that a matrix product treats as its batch. Both are found by
following factors through the graph, so no model has to name them.

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

from collections.abc import Container, Iterable, Mapping

from autopar.ir import Kind, Step
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.menu import Choice
from autopar.sharding.layout import REPLICATED
from autopar.sharding.strategy import REPEAT

Tags = set[tuple[int, int]]  # (value id, dim)

_SWEEPS = 3


class Restriction:
    """Which choices of each atom a strategy allows."""

    def __init__(self, atoms: Atoms, strategy: str) -> None:
        self.strategy = strategy
        self.atoms = atoms
        self.mesh = atoms.mesh
        graph = atoms.step.graph
        self.state = {graph.inputs[i] for i, _ in atoms.step.state}
        self.fed = {graph.inputs[i] for i in atoms.step.batch}
        self.cuts = _cuts(atoms.step)
        seeds = [(graph.inputs[i], 0) for i in atoms.step.batch]
        seeds += [(v, 1) for op in graph.ops if op.id in self.cuts for v in op.results]
        self.batch = _propagate(atoms, seeds, self.cuts) if strategy != "auto" else set()
        self.experts = _propagate(atoms, _expert_dims(atoms, self.state), self.cuts) if strategy == "expert" else set()

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

    def _tagged(self, atom: Atom, tags: Tags) -> set[str]:
        """Names of the op's factors that carry a tag."""
        op = atom.op
        assert op is not None
        if op.id in self.cuts:
            return set()
        sides = (*zip(op.operands, op.rule.operands, strict=True), *zip(op.results, op.rule.results, strict=True))
        return {
            op.rule.factors[dim[0]].name for v, dims in sides for d, dim in enumerate(dims) if dim and (v, d) in tags
        }

    def _op(self, atom: Atom) -> list[int]:
        batch = self._tagged(atom, self.batch)
        experts = self._tagged(atom, self.experts)
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


def _cuts(step: Step) -> frozenset[int]:
    """The ops that cut the batch into micro-batches: the examples lie along dim 1 of what they make, dim 0 is time."""
    graph = step.graph
    batch = {graph.inputs[i] for i in step.batch}
    if not any(op.where.mark for op in graph.walk()):
        return frozenset()
    return frozenset(
        op.id
        for op in graph.ops
        if op.primitive == "reshape" and not op.where.mark and not batch.isdisjoint(op.operands)
    )


def _propagate(atoms: Atoms, seeds: Iterable[tuple[int, int]], cuts: Container[int]) -> Tags:
    """Follow factors from dim to dim through ops and ports until nothing new is found."""
    tags: Tags = {(v, d) for v, d in seeds if d < len(atoms.step.graph.values[v].shape)}
    for _ in range(_SWEEPS):
        before = len(tags)
        for atom in atoms.atoms:
            if atom.op is None or atom.op.id not in cuts:
                _through(atom, tags, atoms)
        if len(tags) == before:
            break
    return tags


def _through(atom: Atom, tags: Tags, atoms: Atoms) -> None:
    if atom.kind == "op":
        op = atom.op
        assert op is not None
        sides = (*zip(op.operands, op.rule.operands, strict=True), *zip(op.results, op.rule.results, strict=True))
        factors = {dim[0] for v, dims in sides for d, dim in enumerate(dims) if dim and (v, d) in tags}
        factors = {f for f in factors if op.rule.factors[f].kind is not Kind.WHOLE}
        if factors:
            tags.update((v, d) for v, dims in sides for d, dim in enumerate(dims) if dim and dim[0] in factors)
    elif atom.kind == "port":
        ends = (*atom.operands, *atom.results)
        ranks = [len(atoms.step.graph.values[v].shape) for v in ends]
        low = min(ranks)
        dims = {d - (r - low) for v, r in zip(ends, ranks, strict=True) for d in range(r) if (v, d) in tags}
        tags.update((v, d + r - low) for v, r in zip(ends, ranks, strict=True) for d in dims if d + r - low >= 0)


def _expert_dims(atoms: Atoms, state: set[int]) -> list[tuple[int, int]]:
    """Dims of parameters that some matrix product treats as a batch dim."""
    values = atoms.step.graph.values
    origin: Mapping[int, int] = _origins(atoms, state)
    found = []
    for atom in atoms.atoms:
        op = atom.op
        if atom.kind != "op" or op is None or op.primitive != "dot_general" or op.where.phase != "forward":
            continue
        shared = {f for dim in op.rule.operands[0] for f in dim} & {f for dim in op.rule.operands[1] for f in dim}
        batch = {f for f in shared if op.rule.factors[f].kind is Kind.PARALLEL}
        for v, dims in zip(op.operands, op.rule.operands, strict=True):
            if v in origin and len(values[v].shape) >= 3:
                found += [(v, d) for d, dim in enumerate(dims) if dim and dim[0] in batch]
    return found


def _origins(atoms: Atoms, state: set[int]) -> dict[int, int]:
    """Values that are a state leaf, or a cast or loop slice of one."""
    origin = {v: v for v in state}
    for atom in atoms.atoms:
        simple = atom.kind == "port" or (atom.op is not None and atom.op.primitive == "convert_element_type")
        if simple and len(atom.operands) >= 1 and atom.operands[0] in origin:
            origin.update(dict.fromkeys(atom.results, origin[atom.operands[0]]))
    return origin
