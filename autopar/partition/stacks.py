"""Which scans of a step run over stacked layers, and which inputs are the stacks.

A stack is an input that is no data and of which a scan reads one slice per trip: parameters of shape ``[L, ...]``, as
they are or after ops that keep layers apart (casts, transposes). A scan one of whose other sequences is computed from
data runs over time, whatever it reads beside it, and stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import PlanError
from autopar.ir import Kind, Op, Step


@dataclass(frozen=True)
class Stacks:
    """What a step stacks.

    Attributes:
      scans: op ids of the scans of the forward pass that run over stacks; what follows from them is not here.
      dims: input value id -> the dim along which layers are stacked.
      lengths: the lengths of those scans, ascending, each once.
    """

    scans: frozenset[int]
    dims: Mapping[int, int] = field(repr=False)
    lengths: tuple[int, ...]


def stacked_lengths(step: Step) -> tuple[int, ...]:
    """How many layers each stack of ``step`` holds: the lengths of its scans over stacks, ascending, each once."""
    return find_stacks(step).lengths


def find_stacks(step: Step) -> Stacks:
    """The scans over stacked layers, and their stacks."""
    graph = step.graph
    data = {graph.inputs[i] for i in step.batch}
    held = set(graph.inputs) - data
    makers: dict[int, Op] = {}
    scans: dict[int, int] = {}
    dims: dict[int, int] = {}
    for op in graph.ops:
        makers.update((v, op) for v in op.results)
        if not data.isdisjoint(op.operands):
            data.update(op.results)
        loop = op.loop
        if loop is None or loop.kind != "scan":
            continue
        sequences = op.operands[loop.consts + loop.carry :]
        found: dict[int, int] = {}
        if data.isdisjoint(sequences):
            for v in sequences:
                found.update(_origins(makers, held, v, 0))
        if found:
            scans[op.id] = loop.length
            dims.update((v, d) for v, d in found.items() if v not in dims)
    return Stacks(frozenset(scans), dims, tuple(sorted(set(scans.values()))))


def _origins(makers: Mapping[int, Op], held: set[int], v: int, dim: int) -> dict[int, int]:
    """Inputs of which parts along ``dim`` of ``v`` are made, with their dim."""
    found: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    stack = [(v, dim)]
    while stack:
        v, dim = stack.pop()
        if (v, dim) in seen:
            continue
        seen.add((v, dim))
        if v in held:
            found.setdefault(v, dim)
        op = makers.get(v)
        if op is None or op.loop is not None:
            continue
        factors = op.rule.results[op.results.index(v)][dim]
        if not factors or op.rule.factors[factors[0]].kind is not Kind.PARALLEL:
            continue
        for w, dims in zip(op.operands, op.rule.operands, strict=True):
            stack += [(w, d) for d, f in enumerate(dims) if f[:1] == factors[:1]]
    return found


def check_chunks(step: Step, stacks: Stacks, chunks: int) -> None:
    """Raise a PlanError unless every stack can be cut into ``chunks`` equal chunks."""
    if not stacks.lengths:
        raise PlanError(
            f"{chunks} chunks of stacked layers were asked for, but {step.name} has no jax.lax.scan over parameters "
            "of shape [layers, ...] in its outermost part. Layers that are written out one by one need no chunks. If "
            "the step returns no new parameters, say which arguments hold the data: batch_argnums."
        )
    if chunks < 1 or any(n % chunks for n in stacks.lengths):
        fitting = [n for n in range(1, stacks.lengths[0] + 1) if all(m % n == 0 for m in stacks.lengths)]
        at = dict.fromkeys(op.where.line for op in step.graph.ops if op.id in stacks.scans)
        raise PlanError(
            f"{chunks} chunks were asked for, but {step.name} scans over stacks of {_listed(stacks.lengths)} layers "
            f"(at {_listed(list(at))}), and every chunk must hold equally many. Chunk counts that would do: "
            f"{', '.join(map(str, fitting))}."
        )


def _listed(things: Sequence[object]) -> str:
    return " and ".join(map(str, things))


_CHUNKS_PER_STAGE = 4


def chunks_for(lengths: Sequence[int], stages: int) -> int:
    """In how many chunks to cut stacks of these lengths for up to ``stages`` stages.

    Enough that stages can be balanced, no more: every chunk makes the step longer.

    >>> chunks_for((48,), 4), chunks_for((6, 6), 2), chunks_for((), 4), chunks_for((7,), 2), chunks_for((48,), 1)
    (16, 6, 1, 7, 1)
    """
    if not lengths or stages == 1:
        return 1
    common = math.gcd(*lengths)
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    return next((d for d in divisors if d >= _CHUNKS_PER_STAGE * stages), common)
