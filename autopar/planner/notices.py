"""What a user should know of a plan besides its figures."""

from __future__ import annotations

import math

from autopar.planner.atoms import Atoms


def warnings_of(atoms: Atoms) -> list[str]:
    """Opaque primitives, and arguments with dims that no axis divides."""
    found: dict[str, None] = {}
    for atom in atoms.atoms:
        op = atom.op
        if atom.kind == "op" and op is not None and op.opaque:
            found[
                f"{op.primitive} at {op.where.line} has no rule: it runs on gathered operands. "
                "autopar.register_rule can give it one."
            ] = None
    sizes = "x".join(map(str, atoms.mesh))
    axes = [size for size in atoms.mesh if size > 1]
    batch = {atoms.step.graph.inputs[i] for i in atoms.step.batch}
    for v in atoms.step.graph.inputs:
        value = atoms.step.graph.values[v]
        dims = [n for n in value.shape if n > 1]
        whole = bool(axes and dims) and all(n % size for size in axes for n in dims)
        if whole:
            found[f"{value.name} of shape {value.shape}: no dim divides by an axis of mesh {sizes}; kept whole."] = None
        elif v in batch and axes and value.shape[:1] > (1,) and value.shape[0] % math.prod(axes):
            found[
                f"{value.name} of shape {value.shape}: dim 0 does not divide by the {math.prod(axes)} devices of mesh "
                f"{sizes}, so the batch cannot be split over all of them."
            ] = None
    return list(found)


__all__ = ["warnings_of"]
