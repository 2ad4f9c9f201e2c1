"""Evaluate ops of a traced step on one part of every array.

A value may exist in several layouts at a time; a reader that wants one which is not there yet follows the decided
moves back to one that is. The same evaluation serves a device of a mesh, inside ``shard_map``, and a micro-batch of a
step, whose axis is time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from autopar.errors import PlanError
from autopar.ir import Graph, Op, region_ports
from autopar.lower.convert import convert
from autopar.lower.localize import Axes, localize
from autopar.sharding.layout import SUM, Layout, Move, text
from autopar.sharding.strategy import Strategy, named
from autopar.trace import Traced

Array = Any


class Scope:
    """Values by layout. A region reads the values around it, but what it makes stays inside."""

    def __init__(self, outer: Scope | None = None) -> None:
        self._outer = outer
        self._values: dict[tuple[int, bool], dict[Layout, Array]] = {}

    def put(self, v: int, layout: Layout, array: Array, *, late: bool = False) -> None:
        """Keep ``array`` as value ``v`` in ``layout``, for late readers only if ``late``."""
        self._values.setdefault((v, late), {})[layout] = array

    def get(self, v: int, late: bool, layout: Layout) -> Array | None:
        """What was put here or around, or None."""
        found = self._values.get((v, late), {}).get(layout)
        return self._outer.get(v, late, layout) if found is None and self._outer is not None else found


@dataclass(frozen=True)
class Decisions:
    """What an evaluation follows: the part of a plan that says how ops and values lie on the axes.

    Attributes:
      ops: op id -> action per axis.
      layouts: layouts as made, of values that no op with actions makes.
      moves: value id -> conversions, each from a layout that exists by then.
      remade: likewise, for readers after the forward pass that get copies of their own.
    """

    ops: Mapping[int, tuple[str, ...]]
    layouts: Mapping[int, Layout]
    moves: Mapping[int, tuple[tuple[Layout, Move], ...]]
    remade: Mapping[int, tuple[tuple[Layout, Move], ...]]


class Evaluator:
    """Evaluates ops on the parts of one place on the axes."""

    def __init__(self, traced: Traced, decisions: Decisions, axes: Axes) -> None:
        self.traced = traced
        self.decisions = decisions
        self.values = traced.step.graph.values
        self.axes = axes
        self.came_from = {
            (v, late): {move.apply(src): (src, move) for src, move in arcs}
            for late, moves in ((False, decisions.moves), (True, decisions.remade))
            for v, arcs in moves.items()
        }

    def name(self, op: Op) -> str:
        """The named scope under which an op is evaluated."""
        return op.where.scope or op.primitive

    def ops(self, ops: Iterable[Op], scope: Scope) -> None:
        """Evaluate ops in order; what they make is put into ``scope``."""
        for op in ops:
            with jax.named_scope(self.name(op)):
                if op.loop is None:
                    self._op(op, scope)
                else:
                    _REGIONS[op.loop.kind](self, op, scope)

    def read(self, scope: Scope, v: int, layout: Layout, *, late: bool = False) -> Array:
        """The value in a layout, converted along the plan's moves if need be.

        A late reader of a remade value gets copies of its own; a barrier keeps XLA from holding the early one.
        """
        value = self.values[v]
        if value.literal:
            return self._literal(v, layout)
        late = late and layout in self.came_from.get((v, True), {})
        found = scope.get(v, late, layout)
        if found is not None:
            return found
        step = self.came_from.get((v, late), {}).get(layout)
        if step is None:
            raise PlanError(
                f"the plan never brings value {v} {value.name} into layout {text(layout)}, which a reader wants. "
                "The plan was edited or belongs to another step; plan again."
            )
        src, move = step
        source = self.read(scope, v, src, late=late)
        if late and src not in self.came_from[v, True]:
            source = jax.lax.optimization_barrier(source)
        array = convert(source, move, self.axes, value.shape)
        scope.put(v, layout, array, late=late)
        return array

    def _literal(self, v: int, layout: Layout) -> Array:
        """A scalar; as a partial sum it is kept by the first device of the axis alone."""
        scalar = self.traced.literals[v]
        for axis, placement in enumerate(layout):
            if placement == SUM:
                scalar = convert(jnp.asarray(scalar), Move(axis, -1, SUM), self.axes, ())
        return scalar

    def _op(self, op: Op, scope: Scope) -> None:
        strategy = self._strategy(op)
        late = op.where.phase != "forward"
        operands = [self.read(scope, v, x, late=late) for v, x in zip(op.operands, strategy.operands, strict=True)]
        shapes = (
            tuple(self.values[v].shape for v in op.operands),
            tuple(self.values[v].shape for v in op.results),
        )
        results = localize(op, self.traced.equations[op.id], strategy, self.axes, shapes, operands)
        for v, layout, array in zip(op.results, strategy.results, results, strict=True):
            scope.put(v, layout, array)

    def _strategy(self, op: Op) -> Strategy:
        names = self.decisions.ops.get(op.id)
        found = named(op.rule, self.axes.sizes, names) if names is not None else None
        if found is None:
            raise PlanError(
                f"the plan's strategy {names} for {op.primitive} at {op.where.line} is not one of its rule "
                f"{op.rule.text!r}. The plan was edited or belongs to another step; plan again."
            )
        return found

    def _enter(self, op: Op, scope: Scope) -> dict[int, Array]:
        """What flows into the regions of an op from outside: region input -> array in its layout."""
        inside: dict[int, Array] = {}
        late = op.where.phase != "forward"
        for port in region_ports(op):
            v, stacked = port.reads[0]
            for inner, _ in port.makes:
                if v in op.operands and inner not in op.results:
                    inside[inner] = self.read(scope, v, _shift(self.decisions.layouts[inner], stacked), late=late)
        return inside

    def leave(self, scope: Scope, ids: Sequence[int], layouts: Sequence[Layout], op: Op | None) -> list[Array]:
        """Outputs (of the step, or of a region of ``op``) as the outside wants them, as arrays of their type."""
        late = op is None or op.where.phase != "forward"
        return [self._array(v, self.read(scope, v, x, late=late)) for v, x in zip(ids, layouts, strict=True)]

    def _array(self, v: int, found: Array) -> Array:
        """A literal becomes an array of its declared type; arrays stay as they are."""
        return found if isinstance(found, jax.Array) else jnp.asarray(found, dtype=self.traced.avals[v].dtype)

    def _scan(self, op: Op, scope: Scope) -> None:
        loop, (body,) = op.loop, op.regions
        assert loop is not None
        inside = self._enter(op, scope)
        fixed, carried, stacked = _cut(body.inputs, loop.consts, loop.carry)
        wanted = [self.decisions.layouts[v] for v in carried]
        wanted += [_shift(self.decisions.layouts[v], -1) for v in op.results[loop.carry :]]

        def step(carry: Sequence[Array], xs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            inner = Scope(scope)
            self.bind(inner, (*fixed, *carried, *stacked), (*(inside[v] for v in fixed), *carry, *xs))
            self.ops(body.ops, inner)
            out = self.leave(inner, body.outputs, wanted, op)
            return out[: loop.carry], out[loop.carry :]

        carry, ys = jax.lax.scan(
            step,
            [self._array(v, inside[v]) for v in carried],
            [inside[v] for v in stacked],
            length=loop.length,
            reverse=bool(self.traced.equations[op.id].params.get("reverse", False)),
        )
        self.bind(scope, op.results, (*carry, *ys))

    def _while(self, op: Op, scope: Scope) -> None:
        loop, (cond, body) = op.loop, op.regions
        assert loop is not None
        inside = self._enter(op, scope)
        wanted = [self.decisions.layouts[v] for v in op.results]

        def run(region: Graph, consts: int, carry: Sequence[Array]) -> Scope:
            inner = Scope(scope)
            fixed = region.inputs[:consts]
            self.bind(inner, region.inputs, (*(inside[v] for v in fixed), *carry))
            self.ops(region.ops, inner)
            return inner

        def test(carry: Sequence[Array]) -> Array:
            inner = run(cond, loop.cond_consts, carry)
            return self.leave(inner, cond.outputs, [(-1,) * len(self.axes.sizes)], op)[0]

        def step(carry: Sequence[Array]) -> list[Array]:
            return self.leave(run(body, loop.consts, carry), body.outputs, wanted, op)

        start = [self._array(v, inside[v]) for v in body.inputs[loop.consts :]]
        self.bind(scope, op.results, jax.lax.while_loop(test, step, start))

    def _cond(self, op: Op, scope: Scope) -> None:
        inside = self._enter(op, scope)
        wanted = [self.decisions.layouts[v] for v in op.results]

        def branch(region: Graph) -> Callable[[], list[Array]]:
            def take() -> list[Array]:
                inner = Scope(scope)
                self.bind(inner, region.inputs, [inside[v] for v in region.inputs])
                self.ops(region.ops, inner)
                return self.leave(inner, region.outputs, wanted, op)

            return take

        index = self.read(scope, op.operands[0], (-1,) * len(self.axes.sizes), late=op.where.phase != "forward")
        results = jax.lax.switch(jnp.asarray(index, jnp.int32), [branch(r) for r in op.regions])
        self.bind(scope, op.results, results)

    def bind(self, scope: Scope, ids: Sequence[int], arrays: Sequence[Array]) -> None:
        """Put arrays as values in their decided layouts."""
        for v, array in zip(ids, arrays, strict=True):
            scope.put(v, self.decisions.layouts[v], array)


_REGIONS: Mapping[str, Callable[[Evaluator, Op, Scope], None]] = {
    "scan": Evaluator._scan,
    "while": Evaluator._while,
    "cond": Evaluator._cond,
}


def _shift(layout: Layout, by: int) -> Layout:
    return tuple(p + by if p >= 0 else p for p in layout)


def _cut(ids: Sequence[int], consts: int, carry: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    return ids[:consts], ids[consts : consts + carry], ids[consts + carry :]
