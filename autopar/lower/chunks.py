"""Evaluate ops on all chunks of stacked layers, one chunk after the other.

Where an evaluator holds one array per value, this one holds a tuple: a part for every chunk. Sums over chunks are
added up at once, in order. Tuples pass through loops and conditions as they are; but where nothing in a region meets
across chunks, every chunk gets a loop (or condition) of its own, so that chunks stay apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autopar.errors import InternalError
from autopar.ir import Op
from autopar.lower.evaluate import Decisions, Evaluator, Scope
from autopar.lower.localize import Axes, localize
from autopar.partition import SAME, Depth
from autopar.partition.apart import PICK, accumulators, beside_carry, outer_reads
from autopar.sharding.layout import MAX, MIN, SUM, Layout
from autopar.sharding.strategy import REPEAT, Strategy
from autopar.trace import MARK, Traced

Array = Any
Parts = Any  # an array that is the same for all chunks, or a tuple of one part per chunk

Body = Callable[[Sequence[Array], Sequence[Array]], tuple[list[Array], list[Array]]]

WHOLE: Layout = (SAME,)
_ADD: Mapping[int, Callable[[Array, Array], Array]] = {SUM: jnp.add, MAX: jnp.maximum, MIN: jnp.minimum}


class Chunks(Evaluator):
    """Evaluates ops on all chunks. An array is the same for all of them, a tuple holds the part of each."""

    def __init__(self, traced: Traced, depth: Depth) -> None:
        found = {op.id: (depth.actions.get(op.id, REPEAT),) for op in traced.step.graph.walk()}
        layouts = {v: (place,) for v, place in depth.places.items()}
        axes = [Axes(("depth",), (depth.chunks,), (k,)) for k in range(depth.chunks)]
        super().__init__(traced, Decisions(found, layouts, {}, {}), axes[0])
        self.depth = depth
        self.each = axes
        self.alone = [_OneChunk(traced, self.decisions, one) for one in axes]

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
            elif op.id in self.depth.apart:
                self._apart(op, scope)
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
        (dim,), place = layout, self._place(v)
        here = scope.get(v, False, (place,))
        if here is None:
            raise InternalError(f"value {v} is read before it is made, in chunks of stacked layers")
        whole = here if place == SAME else jnp.concatenate(here, axis=place)
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
                scope.put(v, WHOLE, functools.reduce(add, parts) if add else parts[0])

    def _localized(self, op: Op, strategy: Strategy, axes: Axes, operands: Sequence[Parts]) -> list[Array]:
        assert axes.positions is not None
        (k,) = axes.positions
        mine = [x[k] if isinstance(x, tuple) else x for x in operands]
        shapes = (
            tuple(self.values[v].shape for v in op.operands),
            tuple(self.values[v].shape for v in op.results),
        )
        return localize(op, self.traced.equations[op.id], strategy, axes, shapes, mine)

    def _apart(self, op: Op, scope: Scope) -> None:
        """A region op once for every chunk."""
        wanted = outer_reads(op, self.depth.places)
        operands = [(v, (p,), self.read(scope, v, (p,))) for v, p in wanted if not self.values[v].literal]
        made = []
        for k, one in enumerate(self.alone):
            inner = Scope()
            for v, layout, found in operands:
                inner.put(v, layout, found[k] if isinstance(found, tuple) else found)
            one.ops([op], inner)
            made.append([one.read(inner, v, self.decisions.layouts[v]) for v in op.results])
        for v, parts in zip(op.results, zip(*made, strict=True), strict=True):
            scope.put(v, self.decisions.layouts[v], parts[0] if self._place(v) == SAME else parts)

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
        scope.put(result, WHOLE, jnp.concatenate(found, axis=place) if len(found) > 1 else found[0])

    def _chain(self, op: Op, scope: Scope) -> None:
        """A scan in chunks: what it carries goes from one to the next, in the order in which it runs.

        What it only adds to does not, so that the chunks' stages exchange the sums when they are finished.
        """
        loop, (body,) = op.loop, op.regions
        assert loop is not None
        params = self.traced.equations[op.id].params
        reverse, length = bool(params.get("reverse", False)), loop.length // self.depth.chunks
        consts = [self.read(scope, v, WHOLE) for v in op.operands[: loop.consts]]
        carried = op.operands[loop.consts : loop.consts + loop.carry]
        start = self.leave(scope, carried, [WHOLE] * loop.carry, op)
        stacks = [self.read(scope, v, (0,)) for v in op.operands[loop.consts + loop.carry :]]

        def body_of(carried: int, wanted: Sequence[int]) -> Body:
            def step(carry: Sequence[Array], xs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
                inner = Scope(scope)
                self.bind(inner, body.inputs, (*consts, *(carry or start), *xs))
                self.ops(body.ops, inner)
                out = self.leave(inner, [body.outputs[i] for i in wanted], [WHOLE] * len(wanted), op)
                return out[:carried], out[carried:]

            return step

        run = functools.partial(
            jax.lax.scan, length=length, reverse=reverse, unroll=max(min(int(params.get("unroll", 1)), length), 1)
        )
        beside, anew = sorted(beside_carry(op)), accumulators(op)
        along = [i for i in range(len(op.results)) if i not in beside]
        made: dict[int, list[Array]] = {i: [] for i in range(loop.carry, len(op.results))}
        carry, totals = start, dict[int, Array]()
        for k in range(self.depth.chunks)[:: -1 if reverse else 1]:
            xs = [parts[k] for parts in stacks]
            begin = [jnp.zeros_like(x) if i in anew and totals else x for i, x in enumerate(carry)]
            carry, ys = run(body_of(loop.carry, along), begin, xs)
            totals = {i: jnp.add(totals[i], carry[i]) if totals else carry[i] for i in anew}
            alone = run(body_of(0, beside), [], xs)[1] if beside else []
            for i, y in zip((*along[loop.carry :], *beside), (*ys, *alone), strict=True):
                made[i].append(y)
        carry = [totals.get(i, x) for i, x in enumerate(carry)]
        ys = [tuple(reversed(parts)) if reverse else tuple(parts) for parts in made.values()]
        self.bind(scope, op.results, (*carry, *ys))


class _OneChunk(Evaluator):
    """Evaluates ops of a region on the parts of one chunk."""

    def name(self, op: Op) -> str:
        """Ops stand where the user's op stands."""
        return f"{MARK}{op.id}"

    def read(self, scope: Scope, v: int, layout: Layout, *, late: bool = False) -> Array:
        """The value, cut to this chunk's part if it is the same for all."""
        if self.values[v].literal:
            return self._literal(v, layout)
        found = scope.get(v, False, layout)
        if found is not None:
            return found
        whole = scope.get(v, False, WHOLE)
        if whole is None or self.axes.positions is None:
            raise InternalError(f"value {v} is wanted whole where there is one chunk alone")
        (dim,), (k,) = layout, self.axes.positions
        size = whole.shape[dim] // self.axes.sizes[0]
        return jax.lax.slice_in_dim(whole, k * size, (k + 1) * size, axis=dim)
