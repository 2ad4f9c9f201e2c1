"""Which factors of ops lie along the examples of the batch, and which along experts.

A *batch factor* lies along the leading dim of the step's batch arguments, an *expert factor* along a parameter dim that
a matrix product treats as its batch. They are found by following factors through the graph: no model has to name them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cached_property

from autopar.ir import Kind, Step
from autopar.planner.atoms import Atom, Atoms
from autopar.sharding.strategy import REPEAT

Tags = set[tuple[int, int]]  # (value id, dim)

_SWEEPS = 3


class Factors:
    """The factors of a step's ops by what they lie along; the same on every mesh."""

    def __init__(self, atoms: Atoms) -> None:
        self._atoms = atoms
        graph = atoms.step.graph
        self.state = {graph.inputs[i] for i, _ in atoms.step.state}
        self.cuts = _cuts(atoms.step)

    @cached_property
    def batch(self) -> Tags:
        """Dims along the examples."""
        graph = self._atoms.step.graph
        seeds = [(graph.inputs[i], 0) for i in self._atoms.step.batch]
        seeds += [(v, 1) for op in graph.ops if op.id in self.cuts for v in op.results]
        return _propagate(self._atoms, seeds, self.cuts)

    @cached_property
    def experts(self) -> Tags:
        """Dims along experts."""
        return _propagate(self._atoms, _expert_dims(self._atoms, self.state), self.cuts)

    def tagged(self, atom: Atom, tags: Tags) -> set[str]:
        """Names of an op's factors that lie along tagged dims."""
        op = atom.op
        assert op is not None
        if op.id in self.cuts:
            return set()
        sides = (*zip(op.operands, op.rule.operands, strict=True), *zip(op.results, op.rule.results, strict=True))
        return {
            op.rule.factors[dim[0]].name for v, dims in sides for d, dim in enumerate(dims) if dim and (v, d) in tags
        }

    def parallelism(self, atom: Atom) -> dict[str, str]:
        """What splitting each factor of an op is: ``data``, ``expert`` or ``tensor``; what splits none is left out."""
        op = atom.op
        assert op is not None
        batch, experts = self.tagged(atom, self.batch), self.tagged(atom, self.experts)
        return {
            f.name: "data" if f.name in batch else "expert" if f.name in experts else "tensor"
            for f in op.rule.factors
            if f.name != REPEAT
        }


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


__all__ = ["Factors", "Tags"]
