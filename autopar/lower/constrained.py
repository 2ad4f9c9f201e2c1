"""The second backend: the same plan as sharding constraints, left to XLA's partitioner.

Numerics are equal; collectives are XLA's choice. Partial layouts cannot be said in constraints, so a value
that the plan keeps partial is left unconstrained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from autopar.ir import Graph, Op
from autopar.lower.convert import convert
from autopar.lower.localize import Axes, localize
from autopar.lower.specs import partition_spec
from autopar.plan import PlanFacts
from autopar.sharding.layout import REPLICATED, SUM, Layout, Move, is_partial
from autopar.sharding.strategy import REPEAT, Strategy, named
from autopar.trace import Traced

Array = Any


def constrained_program(traced: Traced, plan: PlanFacts, mesh: Mesh) -> Callable[..., tuple[Array, ...]]:
    """The function of flat global arguments to flat global results, constrained to ``plan``'s layouts."""

    def program(*flat: Array) -> tuple[Array, ...]:
        graph = traced.step.graph
        values = dict(traced.constants)
        values.update(zip(graph.inputs, flat, strict=True))
        evaluator = _Evaluator(traced, plan, mesh)
        evaluator.graph(graph, values)
        return tuple(evaluator.output(values, v) for v in graph.outputs)

    return program


class _Evaluator:
    def __init__(self, traced: Traced, plan: PlanFacts, mesh: Mesh) -> None:
        self.traced = traced
        self.plan = plan
        self.mesh = mesh

    def constrain(self, array: Array, layout: Layout) -> Array:
        if is_partial(layout) or not array.ndim:
            return array
        spec = partition_spec(layout, array.ndim, self.plan.axis_names)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    def read(self, values: dict[int, Array], v: int) -> Array:
        literal = self.traced.step.graph.values[v].literal
        return self.traced.literals[v] if literal else values[v]

    def output(self, values: dict[int, Array], v: int) -> Array:
        found = self.read(values, v)
        return found if isinstance(found, jax.Array) else jnp.asarray(found, dtype=self.traced.avals[v].dtype)

    def graph(self, graph: Graph, values: dict[int, Array]) -> None:
        for op in graph.ops:
            with jax.named_scope(op.where.scope or op.primitive):
                if op.loop is None:
                    results = self.op(op, values)
                else:
                    results = _REGIONS[op.loop.kind](self, op, [self.read(values, v) for v in op.operands])
            values.update(zip(op.results, results, strict=True))

    def op(self, op: Op, values: dict[int, Array]) -> Sequence[Array]:
        equation = self.traced.equations[op.id]
        names = self.plan.ops[op.id]
        operands = [self.read(values, v) for v in op.operands]
        if equation.params.get("batch_group_count", 1) > 1:
            # XLA's partitioner adds such a convolution up too often where its input lies whole along some axis.
            whole = named(op.rule, self.plan.mesh_shape, [REPEAT if n.startswith("+") else n for n in names])
            if whole is not None:
                return self.by_hand(op, whole, operands)
        strategy = named(op.rule, self.plan.mesh_shape, names)
        results = equation.primitive.bind(*operands, **equation.params)
        results = results if equation.primitive.multiple_results else [results]
        if strategy is None:
            return results
        return [self.constrain(array, x) for array, x in zip(results, strategy.results, strict=True)]

    def by_hand(self, op: Op, strategy: Strategy, operands: Sequence[Array]) -> Sequence[Array]:
        """One op in parts, its partial sums added up, with nothing left to the partitioner."""
        values, names = self.traced.step.graph.values, self.plan.axis_names
        axes = Axes(names, self.plan.mesh_shape)
        shapes = (tuple(values[v].shape for v in op.operands), tuple(values[v].shape for v in op.results))
        finished = [tuple(max(p, REPLICATED) for p in x) for x in strategy.results]

        def local(*parts: Array) -> list[Array]:
            results = localize(op, self.traced.equations[op.id], strategy, axes, shapes, parts)
            for axis in range(len(names)):
                results = [
                    convert(array, Move(axis, SUM, REPLICATED), axes, shape) if x[axis] == SUM else array
                    for array, x, shape in zip(results, strategy.results, shapes[1], strict=True)
                ]
            return results

        def specs(ids: Sequence[int], layouts: Sequence[Layout]) -> tuple[jax.P, ...]:
            return tuple(partition_spec(x, len(values[v].shape), names) for v, x in zip(ids, layouts, strict=True))

        ins, outs = specs(op.operands, strategy.operands), specs(op.results, finished)
        return jax.shard_map(local, mesh=self.mesh, in_specs=ins, out_specs=list(outs), check_vma=False)(*operands)

    def region(self, graph: Graph, arrays: Sequence[Array]) -> list[Array]:
        inner = dict(self.traced.constants)
        for v, array in zip(graph.inputs, arrays, strict=True):
            inner[v] = self.constrain(array, self.plan.layouts[v]) if isinstance(array, jax.Array) else array
        self.graph(graph, inner)
        return [self.output(inner, v) for v in graph.outputs]

    def scan(self, op: Op, operands: Sequence[Array]) -> Sequence[Array]:
        loop, (body,) = op.loop, op.regions
        assert loop is not None
        fixed = list(operands[: loop.consts])
        start = [
            x if isinstance(x, jax.Array) else jnp.asarray(x, dtype=self.traced.avals[v].dtype)
            for v, x in zip(body.inputs[loop.consts :], operands[loop.consts : loop.consts + loop.carry], strict=False)
        ]

        def step(carry: Sequence[Array], xs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            out = self.region(body, [*fixed, *carry, *xs])
            return out[: loop.carry], out[loop.carry :]

        reverse = bool(self.traced.equations[op.id].params.get("reverse", False))
        stacked = list(operands[loop.consts + loop.carry :])
        carry, ys = jax.lax.scan(step, start, stacked, length=loop.length, reverse=reverse)
        return [*carry, *ys]

    def while_(self, op: Op, operands: Sequence[Array]) -> Sequence[Array]:
        loop, (cond, body) = op.loop, op.regions
        assert loop is not None
        before, fixed = operands[: loop.cond_consts], operands[loop.cond_consts : loop.cond_consts + loop.consts]
        start = [
            x if isinstance(x, jax.Array) else jnp.asarray(x, dtype=self.traced.avals[v].dtype)
            for v, x in zip(body.inputs[loop.consts :], operands[loop.cond_consts + loop.consts :], strict=True)
        ]
        return jax.lax.while_loop(
            lambda carry: self.region(cond, [*before, *carry])[0],
            lambda carry: self.region(body, [*fixed, *carry]),
            start,
        )

    def cond(self, op: Op, operands: Sequence[Array]) -> Sequence[Array]:
        def branch(region: Graph) -> Callable[..., list[Array]]:
            return lambda *arrays: self.region(region, arrays)

        return jax.lax.switch(jnp.asarray(operands[0], jnp.int32), [branch(r) for r in op.regions], *operands[1:])


_REGIONS: dict[str, Callable[[_Evaluator, Op, Sequence[Array]], Sequence[Array]]] = {
    "scan": _Evaluator.scan,
    "while": _Evaluator.while_,
    "cond": _Evaluator.cond,
}
