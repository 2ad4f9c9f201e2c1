"""Write a step with stacked layers as one whose layers come in chunks, each in arrays and scans of its own.

What comes out is traced again (as in :mod:`autopar.lower.emit`), and every op stands where the user's op stands, so
that stages can be cut between chunks as between layers that were written out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from autopar.errors import PlanError
from autopar.ir import Op
from autopar.lower.evaluate import Decisions, Evaluator, Scope
from autopar.lower.localize import Axes, localize
from autopar.partition.depth import PICK, Depth, Part, cut_depth
from autopar.partition.timing import SAME
from autopar.sharding.layout import MAX, MIN, SUM, Layout
from autopar.sharding.strategy import REPEAT, Strategy
from autopar.trace import MARK, Traced, trace

Array = Any
Parts = Any  # an array that is the same for all chunks, or a tuple of one part per chunk

_WHOLE: Layout = (SAME,)
_ADD: Mapping[int, Callable[[Array, Array], Array]] = {SUM: jnp.add, MAX: jnp.maximum, MIN: jnp.minimum}


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
    writer = _Writer(traced, depth)
    graph = traced.step.graph
    known = {f"{MARK}{op.id}": op.where for op in graph.walk()}
    avals = [traced.avals[v] for v in graph.inputs]
    written = trace(writer.run, [_shape(avals[p.index], p) for p in depth.inputs], known=known)
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


class _Writer(Evaluator):
    """Evaluates ops on all chunks, one after the other. Where an evaluator holds an array, this holds ``Parts``."""

    def __init__(self, traced: Traced, depth: Depth) -> None:
        found = {op.id: (depth.actions.get(op.id, REPEAT),) for op in traced.step.graph.walk()}
        layouts = {v: (place,) for v, place in depth.places.items()}
        axes = [Axes(("depth",), (depth.chunks,), (k,)) for k in range(depth.chunks)]
        super().__init__(traced, Decisions(found, layouts, {}, {}), axes[0])
        self.depth = depth
        self.each = axes

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """The rewritten step: flat arguments to flat results."""
        graph = self.traced.step.graph
        scope = Scope()
        given: dict[int, list[Array]] = {}
        for part, array in zip(self.depth.inputs, arrays, strict=True):
            given.setdefault(graph.inputs[part.index], []).append(array)
        self.bind(scope, list(given), [x[0] if self._place(v) < 0 else tuple(x) for v, x in given.items()])
        self.bind(scope, list(self.traced.constants), list(self.traced.constants.values()))
        self.ops(graph.ops, scope)
        leaving: dict[int, Layout] = {p.index: (SAME if p.start is None else p.dim,) for p in self.depth.outputs}
        found = self.leave(scope, graph.outputs, [leaving[o] for o in range(len(graph.outputs))], None)
        return tuple(jax.tree.leaves(found))

    def _place(self, v: int) -> int:
        return self.depth.places[v]

    def name(self, op: Op) -> str:
        """Ops stand where the user's op stands."""
        return f"{MARK}{op.id}"

    def ops(self, ops: Iterable[Op], scope: Scope) -> None:
        """Evaluate ops in order; what they make is put into ``scope``."""
        for op in ops:
            if op.id in self.depth.chains:
                with jax.named_scope(self.name(op)):
                    self._chain(op, scope)
            else:
                super().ops([op], scope)

    def read(self, scope: Scope, v: int, layout: Layout, *, late: bool = False) -> Parts:
        """The value whole, as a tuple of parts, or as addends to be summed."""
        if self.values[v].literal:
            whole = self.traced.literals[v]
            return self._addends(jnp.asarray(whole)) if layout == (SUM,) else whole
        found = scope.get(v, False, layout)
        if found is not None:
            return found
        made = (self._place(v),)
        (dim,), here = layout, scope.get(v, False, made)
        if here is None:
            raise PlanError(f"value {v} is read before it is made: the step is not the one that was cut.")
        whole = here if made == _WHOLE else jnp.concatenate(here, axis=made[0])
        found = whole if dim == SAME else self._addends(whole) if dim == SUM else self._slices(whole, dim)
        scope.put(v, layout, found)
        return found

    def _slices(self, whole: Array, dim: int) -> tuple[Array, ...]:
        size = whole.shape[dim] // self.depth.chunks
        return tuple(
            jax.lax.slice_in_dim(whole, k * size, (k + 1) * size, axis=dim) for k in range(self.depth.chunks)
        )  # fmt: skip

    def _addends(self, whole: Array) -> tuple[Array, ...]:
        """The first chunk adds all of it."""
        return (whole, *(jnp.zeros_like(whole) for _ in self.each[1:]))

    def _array(self, v: int, found: Parts) -> Parts:
        return found if isinstance(found, tuple) else super()._array(v, found)

    def _op(self, op: Op, scope: Scope) -> None:
        action = self.depth.actions.get(op.id, REPEAT)
        if action == PICK:
            self._pick(op, scope)
            return
        strategy = self._strategy(op)
        operands = [self.read(scope, v, x) for v, x in zip(op.operands, strategy.operands, strict=True)]
        chunks = self.each[:1] if action == REPEAT else self.each
        made = [self._localized(op, strategy, axes, operands) for axes in chunks]
        for v, (place,), *parts in zip(op.results, strategy.results, *made, strict=True):
            if place >= 0:
                scope.put(v, (place,), tuple(parts))
            else:
                add = _ADD.get(place)
                scope.put(v, _WHOLE, functools.reduce(add, parts) if add else parts[0])

    def _localized(self, op: Op, strategy: Strategy, axes: Axes, operands: Sequence[Parts]) -> list[Array]:
        assert axes.positions is not None
        (k,) = axes.positions
        mine = [x[k] if isinstance(x, tuple) else x for x in operands]
        shapes = (
            tuple(self.values[v].shape for v in op.operands),
            tuple(self.values[v].shape for v in op.results),
        )
        return localize(op, self.traced.equations[op.id], strategy, axes, shapes, mine)

    def _pick(self, op: Op, scope: Scope) -> None:
        """A slice along the cut dim, from the parts that it overlaps."""
        (v,), (result,) = op.operands, op.results
        place = self._place(v)
        params = self.traced.equations[op.id].params
        starts, limits = list(params["start_indices"]), list(params["limit_indices"])
        strides = list(params["strides"] or (1,) * len(starts))
        start, limit, stride = starts[place], limits[place], strides[place]
        found = []
        for k, part in enumerate(self.read(scope, v, (place,))):
            size = part.shape[place]
            first = max(start, k * size + (start - k * size) % stride) - k * size
            last = min(limit - k * size, size)
            if first < last:
                starts[place], limits[place] = first, last
                found.append(jax.lax.slice(part, starts, limits, strides))
        scope.put(result, _WHOLE, jnp.concatenate(found, axis=place) if len(found) > 1 else found[0])

    def _chain(self, op: Op, scope: Scope) -> None:
        """A scan in chunks: what it carries goes from one to the next, in the order in which it runs."""
        loop, (body,) = op.loop, op.regions
        assert loop is not None
        params = self.traced.equations[op.id].params
        reverse, length = bool(params.get("reverse", False)), loop.length // self.depth.chunks
        consts = [self.read(scope, v, _WHOLE) for v in op.operands[: loop.consts]]
        start = op.operands[loop.consts : loop.consts + loop.carry]
        carry = self.leave(scope, start, [_WHOLE] * loop.carry, op)
        stacks = [self.read(scope, v, (0,)) for v in op.operands[loop.consts + loop.carry :]]

        def step(carry: Sequence[Array], xs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            inner = Scope(scope)
            self.bind(inner, body.inputs, (*consts, *carry, *xs))
            self.ops(body.ops, inner)
            out = self.leave(inner, body.outputs, [_WHOLE] * len(body.outputs), op)
            return out[: loop.carry], out[loop.carry :]

        made: dict[int, Sequence[Array]] = {}
        for k in range(self.depth.chunks)[:: -1 if reverse else 1]:
            unroll = max(min(int(params.get("unroll", 1)), length), 1)
            xs = [parts[k] for parts in stacks]
            carry, made[k] = jax.lax.scan(step, carry, xs, length=length, reverse=reverse, unroll=unroll)
        ys = zip(*(made[k] for k in range(self.depth.chunks)), strict=True)
        self.bind(scope, op.results, (*carry, *map(tuple, ys)))


__all__ = ["Unstacked", "cut_parts", "join_parts", "unstacked"]
