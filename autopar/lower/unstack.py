"""Write a step with stacked layers as one whose layers come in chunks, each in arrays and scans of its own.

What comes out is traced again (as in :mod:`autopar.lower.emit`), and every op stands where the user's op stands, so
that stages can be cut between chunks as between layers that were written out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from autopar.lower.chunks import WHOLE, Chunks
from autopar.lower.evaluate import Scope
from autopar.partition import Depth, Part, cut_depth
from autopar.sharding.layout import Layout
from autopar.trace import MARK, Traced, trace

Array = Any


@dataclass(frozen=True)
class Unstacked:
    """A step whose stacked layers come in chunks.

    Attributes:
      traced: the rewritten step. Its arguments and results are flat: arrays as ``inputs`` and ``outputs`` say.
      chunks: number of chunks.
      inputs: per input of the rewritten step, which part it is of which leaf of the step's arguments.
      outputs: per output, which part it is of which leaf of the step's result.
    """

    traced: Traced
    chunks: int
    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]


def unstacked(traced: Traced, chunks: int) -> Unstacked:
    """The same step with every scan over ``L`` stacked layers as a chain of scans over ``L / chunks`` each.

    Stacked leaves of the state, and what is stacked in the result, come as ``chunks`` arrays: :func:`cut_parts` and
    :func:`join_parts` translate.

    Args:
      traced: the step.
      chunks: number of chunks; it divides the lengths that :func:`autopar.partition.stacked_lengths` tells. One chunk
        is the step as it is, whatever it holds.

    Raises:
      PlanError: the stacks cannot be cut so, or some op reads all layers of a stack together.
    """
    if chunks == 1:
        graph = traced.step.graph
        return Unstacked(traced, 1, *(tuple(map(Part, range(len(ids)))) for ids in (graph.inputs, graph.outputs)))
    depth = cut_depth(traced.step, chunks)
    graph = traced.step.graph
    known = {f"{MARK}{op.id}": op.where for op in graph.walk()}
    avals = [traced.avals[v] for v in graph.inputs]
    written = trace(
        functools.partial(_run, traced, depth), [_shape(avals[p.index], p) for p in depth.inputs], known=known
    )
    paths = tuple(_name(traced.in_paths[p.index], p) for p in depth.inputs)
    values = dict(written.step.graph.values)
    for v, path in zip(written.step.graph.inputs, paths, strict=True):
        values[v] = replace(values[v], name=path)
    old = traced.step
    step = replace(
        old,
        graph=replace(written.step.graph, values=values),
        state=_pairs(old.state, depth),
        donated=frozenset(k for k, p in enumerate(depth.inputs) if p.index in old.donated),
        batch=tuple(k for k, p in enumerate(depth.inputs) if p.index in old.batch),
    )
    out_paths = tuple(_name(traced.out_paths[p.index], p) for p in depth.outputs)
    written = replace(written, step=step, in_paths=paths, out_paths=out_paths, notes=traced.notes)
    return Unstacked(written, chunks, depth.inputs, depth.outputs)


def cut_parts(parts: Sequence[Part], leaves: Sequence[Array]) -> list[Array]:
    """Leaves of the step's arguments (or result) as the rewritten step takes (or gives) them."""
    return [_cut(leaves[p.index], p) for p in parts]


def join_parts(parts: Sequence[Part], arrays: Sequence[Array]) -> list[Array]:
    """The inverse of :func:`cut_parts`."""
    found: dict[int, list[tuple[Part, Array]]] = {}
    for part, array in zip(parts, arrays, strict=True):
        found.setdefault(part.index, []).append((part, array))
    return [_joined(found[i]) for i in sorted(found)]


def _cut(leaf: Array, part: Part) -> Array:
    if part.start is None:
        return leaf
    return leaf[(slice(None),) * part.dim + (slice(part.start, part.stop),)]


def _joined(pieces: Sequence[tuple[Part, Array]]) -> Array:
    (first, array), *more = pieces
    return jnp.concatenate([array, *(a for _, a in more)], axis=first.dim) if more else array


def _shape(aval: Any, part: Part) -> jax.ShapeDtypeStruct:
    shape = list(aval.shape)
    if part.start is not None and part.stop is not None:
        shape[part.dim] = part.stop - part.start
    return jax.ShapeDtypeStruct(tuple(shape), aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _name(path: str, part: Part) -> str:
    return path if part.start is None else f"{path}[{':, ' * part.dim}{part.start}:{part.stop}]"


def _pairs(state: Iterable[tuple[int, int]], depth: Depth) -> tuple[tuple[int, int], ...]:
    """A leaf and its successor come in the same parts."""
    inputs, outputs = _by_index(depth.inputs), _by_index(depth.outputs)
    return tuple(pair for i, o in state for pair in zip(inputs[i], outputs[o], strict=True))


def _by_index(parts: Sequence[Part]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for k, part in enumerate(parts):
        found.setdefault(part.index, []).append(k)
    return found


def _run(traced: Traced, depth: Depth, *arrays: Array) -> tuple[Array, ...]:
    """The rewritten step: flat arguments to flat results."""
    graph = traced.step.graph
    evaluator, scope = Chunks(traced, depth), Scope()
    given: dict[int, list[Array]] = {}
    for part, array in zip(depth.inputs, arrays, strict=True):
        given.setdefault(graph.inputs[part.index], []).append(array)
    for v, parts in given.items():
        whole = depth.places[v] < 0
        evaluator.bind(scope, [v], parts if whole else [tuple(parts)])
    evaluator.bind(scope, list(traced.constants), list(traced.constants.values()))
    evaluator.ops(graph.ops, scope)
    layouts: dict[int, Layout] = {p.index: WHOLE if p.start is None else (p.dim,) for p in depth.outputs}
    found = evaluator.leave(scope, graph.outputs, [layouts[o] for o in range(len(graph.outputs))], None)
    return tuple(jax.tree.leaves(found))


__all__ = ["Unstacked", "cut_parts", "join_parts", "unstacked"]
