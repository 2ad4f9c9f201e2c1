"""After conversion: drop what nobody reads, and give every op its phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from autopar.ir import Graph, Op, Value


def without_dead_code(graph: Graph) -> Graph:
    """``graph`` without unread ops, constants and values; region ops keep their operands and results."""
    ops = _live(graph)
    trimmed = replace(graph, ops=ops)
    used = set(graph.inputs)
    _collect(trimmed, used)
    values = {v: value for v, value in graph.values.items() if v in used}
    constants = tuple(c for c in graph.constants if c in used)
    return replace(_with_values(trimmed, values), constants=constants)


def _live(graph: Graph) -> tuple[Op, ...]:
    wanted = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if wanted.isdisjoint(op.results):
            continue
        wanted.update(op.operands)
        if op.regions:
            op = replace(op, regions=tuple(replace(r, ops=_live(r)) for r in op.regions))
        kept.append(op)
    return tuple(reversed(kept))


def _collect(graph: Graph, used: set[int]) -> None:
    used.update(graph.inputs, graph.outputs)
    for op in graph.ops:
        used.update(op.operands, op.results)
        for region in op.regions:
            _collect(region, used)


def _with_values(graph: Graph, values: Mapping[int, Value]) -> Graph:
    ops = tuple(
        replace(op, regions=tuple(_with_values(r, values) for r in op.regions)) if op.regions else op
        for op in graph.ops
    )
    return replace(graph, ops=ops, values=values)


def with_phases(graph: Graph) -> Graph:
    """``graph`` with a phase for the ops that jax did not mark as part of a differentiation.

    An unmarked op that (through others) feeds a marked one, and itself depends on no backward op, is part of the
    forward pass: casts, embeddings of inputs, dropout keys. Any other is part of the update. A step without a
    backward pass is all forward.
    """
    if not any(op.where.phase == "backward" for op in graph.walk()):
        return _filled(graph, ["forward"] * len(graph.ops), overwrite=True)
    after_backward = _reached(graph.ops, "backward", forwards=True)
    feeds_loss = _reached(graph.ops, "forward", forwards=False)
    feeds_gradient = _reached(graph.ops, "backward", forwards=False)
    phases = [
        "forward" if (loss or gradient) and not after else "update"
        for after, loss, gradient in zip(after_backward, feeds_loss, feeds_gradient, strict=True)
    ]
    return _filled(graph, phases, overwrite=False)


def _reached(ops: tuple[Op, ...], phase: str, *, forwards: bool) -> list[bool]:
    """Per op, whether it depends on (``forwards``) or feeds an op of ``phase``, or is one."""
    marked: set[int] = set()
    reached = [False] * len(ops)
    for i in range(len(ops)) if forwards else reversed(range(len(ops))):
        op = ops[i]
        before, after = (op.operands, op.results) if forwards else (op.results, op.operands)
        if op.where.phase == phase or _holds(op, phase) or not marked.isdisjoint(before):
            reached[i] = True
            marked.update(after)
    return reached


def _holds(op: Op, phase: str) -> bool:
    """Whether an unmarked region op has a marked op inside: a loop over gradient computations."""
    return not op.where.phase and any(inner.where.phase == phase for r in op.regions for inner in r.walk())


def _filled(graph: Graph, phases: Iterable[str], *, overwrite: bool) -> Graph:
    ops = []
    for op, phase in zip(graph.ops, phases, strict=True):
        phase = phase if overwrite else op.where.phase or phase
        if phase != op.where.phase:
            op = replace(op, where=replace(op.where, phase=phase))
        if op.regions:
            regions = tuple(_filled(r, [phase] * len(r.ops), overwrite=overwrite) for r in op.regions)
            op = replace(op, regions=regions)
        ops.append(op)
    return replace(graph, ops=tuple(ops))
