"""One SPMD program that runs exactly the plan: each op on its part, each conversion by its collective.

The graph is evaluated once, under ``shard_map`` with every mesh axis manual. A value may exist in several
layouts at a time; a reader that wants one which is not there yet follows the plan's moves back to one that
is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from autopar.errors import PlanError
from autopar.ir import Graph, Op, region_ports
from autopar.lower.convert import convert
from autopar.lower.localize import Axes, localize
from autopar.lower.specs import partition_spec
from autopar.plan import PlanFacts
from autopar.sharding.layout import SUM, Layout, Move, text
from autopar.sharding.strategy import Strategy, named
from autopar.trace import Traced

Array = Any


def spmd_program(traced: Traced, plan: PlanFacts, mesh: Mesh) -> Callable[..., tuple[Array, ...]]:
    """The function of flat global arguments to flat global results that runs ``plan`` on ``mesh``."""
    names = plan.axis_names
    arguments = [a for a in plan.arguments if a.kind != "constant"]
    in_specs = tuple(partition_spec(a.layout, len(a.shape), names) for a in arguments)
    out_specs = tuple(partition_spec(r.layout, len(r.shape), names) for r in plan.results)
    constants = [a for a in plan.arguments if a.kind == "constant"]
    constant_specs = tuple(partition_spec(a.layout, len(a.shape), names) for a in constants)
    captured = tuple(traced.constants[v] for v in traced.step.graph.constants)

    def local(constant_parts: tuple[Array, ...], parts: tuple[Array, ...]) -> tuple[Array, ...]:
        return _Evaluator(traced, plan).run(constant_parts, parts)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(constant_specs, in_specs), out_specs=out_specs, check_vma=False)

    def program(*flat: Array) -> tuple[Array, ...]:
        return mapped(captured, flat)

    return program


class _Scope:
    """Values by layout. A region reads the values around it, but what it makes stays inside."""

    def __init__(self, outer: _Scope | None = None) -> None:
        self._outer = outer
        self._values: dict[tuple[int, bool], dict[Layout, Array]] = {}

    def put(self, v: int, layout: Layout, array: Array, *, late: bool = False) -> None:
        self._values.setdefault((v, late), {})[layout] = array

    def get(self, v: int, late: bool, layout: Layout) -> Array | None:
        found = self._values.get((v, late), {}).get(layout)
        return self._outer.get(v, late, layout) if found is None and self._outer is not None else found


class _Evaluator:
    def __init__(self, traced: Traced, plan: PlanFacts) -> None:
        self.traced = traced
        self.plan = plan
        self.values = traced.step.graph.values
        self.axes = Axes(plan.axis_names, plan.mesh_shape)
        self.came_from = {
            (v, late): {move.apply(src): (src, move) for src, move in arcs}
            for late, moves in ((False, plan.moves), (True, plan.remade))
            for v, arcs in moves.items()
        }

    def run(self, constants: Sequence[Array], arguments: Sequence[Array]) -> tuple[Array, ...]:
        graph = self.traced.step.graph
        scope = _Scope()
        for v, array in zip((*graph.constants, *graph.inputs), (*constants, *arguments), strict=True):
            scope.put(v, self.plan.layouts[v], array)
        self.graph(graph, scope)
        return tuple(self.leave(scope, graph.outputs, [r.layout for r in self.plan.results], None))

    def graph(self, graph: Graph, scope: _Scope) -> None:
        for op in graph.ops:
            with jax.named_scope(op.where.scope or op.primitive):
                if op.loop is None:
                    self.op(op, scope)
                else:
                    _REGIONS[op.loop.kind](self, op, scope)

    def read(self, scope: _Scope, v: int, layout: Layout, *, late: bool = False) -> Array:
        """The value in a layout, converted along the plan's moves if need be.

        A late reader of a remade value gets copies of its own; a barrier keeps XLA from holding the early one.
        """
        value = self.values[v]
        if value.literal:
            return self.literal(v, layout)
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

    def literal(self, v: int, layout: Layout) -> Array:
        """A scalar; as a partial sum it is kept by the first device of the axis alone."""
        scalar = self.traced.literals[v]
        for axis, placement in enumerate(layout):
            if placement == SUM:
                scalar = convert(jnp.asarray(scalar), Move(axis, -1, SUM), self.axes, ())
        return scalar

    def op(self, op: Op, scope: _Scope) -> None:
        strategy = self.strategy(op)
        late = op.where.phase != "forward"
        operands = [self.read(scope, v, x, late=late) for v, x in zip(op.operands, strategy.operands, strict=True)]
        shapes = (
            tuple(self.values[v].shape for v in op.operands),
            tuple(self.values[v].shape for v in op.results),
        )
        results = localize(op, self.traced.equations[op.id], strategy, self.axes, shapes, operands)
        for v, layout, array in zip(op.results, strategy.results, results, strict=True):
            scope.put(v, layout, array)

    def strategy(self, op: Op) -> Strategy:
        names = self.plan.ops.get(op.id)
        found = named(op.rule, self.plan.mesh_shape, names) if names is not None else None
        if found is None:
            raise PlanError(
                f"the plan's strategy {names} for {op.primitive} at {op.where.line} is not one of its rule "
                f"{op.rule.text!r}. The plan was edited or belongs to another step; plan again."
            )
        return found

    def enter(self, op: Op, scope: _Scope) -> dict[int, Array]:
        """What flows into the regions of an op from outside: region input -> array in its layout."""
        inside: dict[int, Array] = {}
        late = op.where.phase != "forward"
        for port in region_ports(op):
            v, stacked = port.reads[0]
            for inner, _ in port.makes:
                if v in op.operands and inner not in op.results:
                    inside[inner] = self.read(scope, v, _shift(self.plan.layouts[inner], stacked), late=late)
        return inside

    def leave(self, scope: _Scope, ids: Sequence[int], layouts: Sequence[Layout], op: Op | None) -> list[Array]:
        """Outputs (of the step, or of a region of ``op``) as the outside wants them, as arrays of their type."""
        late = op is None or op.where.phase != "forward"
        return [self.array(v, self.read(scope, v, x, late=late)) for v, x in zip(ids, layouts, strict=True)]

    def array(self, v: int, found: Array) -> Array:
        """A literal becomes an array of its declared type; arrays stay as they are."""
        return found if isinstance(found, jax.Array) else jnp.asarray(found, dtype=self.traced.avals[v].dtype)

    def scan(self, op: Op, scope: _Scope) -> None:
        loop, (body,) = op.loop, op.regions
        assert loop is not None
        inside = self.enter(op, scope)
        fixed, carried, stacked = _cut(body.inputs, loop.consts, loop.carry)
        wanted = [self.plan.layouts[v] for v in carried]
        wanted += [_shift(self.plan.layouts[v], -1) for v in op.results[loop.carry :]]

        def step(carry: Sequence[Array], xs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            inner = _Scope(scope)
            self.bind(inner, (*fixed, *carried, *stacked), (*(inside[v] for v in fixed), *carry, *xs))
            self.graph(body, inner)
            out = self.leave(inner, body.outputs, wanted, op)
            return out[: loop.carry], out[loop.carry :]

        carry, ys = jax.lax.scan(
            step,
            [self.array(v, inside[v]) for v in carried],
            [inside[v] for v in stacked],
            length=loop.length,
            reverse=bool(self.traced.equations[op.id].params.get("reverse", False)),
        )
        self.bind(scope, op.results, (*carry, *ys))

    def while_(self, op: Op, scope: _Scope) -> None:
        loop, (cond, body) = op.loop, op.regions
        assert loop is not None
        inside = self.enter(op, scope)
        wanted = [self.plan.layouts[v] for v in op.results]

        def run(region: Graph, consts: int, carry: Sequence[Array]) -> _Scope:
            inner = _Scope(scope)
            fixed = region.inputs[:consts]
            self.bind(inner, region.inputs, (*(inside[v] for v in fixed), *carry))
            self.graph(region, inner)
            return inner

        def test(carry: Sequence[Array]) -> Array:
            inner = run(cond, loop.cond_consts, carry)
            return self.leave(inner, cond.outputs, [(-1,) * len(self.axes.sizes)], op)[0]

        def step(carry: Sequence[Array]) -> list[Array]:
            return self.leave(run(body, loop.consts, carry), body.outputs, wanted, op)

        start = [self.array(v, inside[v]) for v in body.inputs[loop.consts :]]
        self.bind(scope, op.results, jax.lax.while_loop(test, step, start))

    def cond(self, op: Op, scope: _Scope) -> None:
        inside = self.enter(op, scope)
        wanted = [self.plan.layouts[v] for v in op.results]

        def branch(region: Graph) -> Callable[[], list[Array]]:
            def take() -> list[Array]:
                inner = _Scope(scope)
                self.bind(inner, region.inputs, [inside[v] for v in region.inputs])
                self.graph(region, inner)
                return self.leave(inner, region.outputs, wanted, op)

            return take

        index = self.read(scope, op.operands[0], (-1,) * len(self.axes.sizes), late=op.where.phase != "forward")
        results = jax.lax.switch(jnp.asarray(index, jnp.int32), [branch(r) for r in op.regions])
        self.bind(scope, op.results, results)

    def bind(self, scope: _Scope, ids: Sequence[int], arrays: Sequence[Array]) -> None:
        for v, array in zip(ids, arrays, strict=True):
            scope.put(v, self.plan.layouts[v], array)


_REGIONS: Mapping[str, Callable[[_Evaluator, Op, _Scope], None]] = {
    "scan": _Evaluator.scan,
    "while": _Evaluator.while_,
    "cond": _Evaluator.cond,
}


def _shift(layout: Layout, by: int) -> Layout:
    return tuple(p + by if p >= 0 else p for p in layout)


def _cut(ids: Sequence[int], consts: int, carry: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    return ids[:consts], ids[consts : consts + carry], ids[consts + carry :]
