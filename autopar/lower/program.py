"""One SPMD program that runs exactly the plan: each op on its part, each conversion by its collective.

The graph is evaluated once, under ``shard_map`` with every mesh axis manual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from autopar.lower.evaluate import Decisions, Evaluator, Scope
from autopar.lower.localize import Axes
from autopar.lower.specs import partition_spec
from autopar.plan import PlanFacts
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
        graph = traced.step.graph
        decisions = Decisions(plan.ops, plan.layouts, plan.moves, plan.remade)
        evaluator = Evaluator(traced, decisions, Axes(plan.axis_names, plan.mesh_shape))
        scope = Scope()
        evaluator.bind(scope, (*graph.constants, *graph.inputs), (*constant_parts, *parts))
        evaluator.ops(graph.ops, scope)
        return tuple(evaluator.leave(scope, graph.outputs, [r.layout for r in plan.results], None))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(constant_specs, in_specs), out_specs=out_specs, check_vma=False)

    def program(*flat: Array) -> tuple[Array, ...]:
        return mapped(captured, flat)

    return program
