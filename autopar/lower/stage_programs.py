"""The programs of one stage: each segment of its plan as one ``jit(shard_map)``, and the buffers between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from autopar.lower.evaluate import Decisions, Evaluator, Scope
from autopar.lower.keys import KEY_IMPLS
from autopar.lower.localize import Axes
from autopar.lower.specs import buffer_spec
from autopar.lower.turns import Turn, turns
from autopar.mesh import Cluster
from autopar.partition import StageSection
from autopar.plan import PlanFacts
from autopar.schedule import Buffer, Program, Stage
from autopar.segments import PREPARE, UPDATE, Form, Segment, Segments, program_name, take_apart
from autopar.sharding.layout import SUM
from autopar.trace import Traced

Array = Any


@dataclass(frozen=True)
class StagePrograms:
    """A stage made ready to run.

    Attributes:
      stage: its buffers and programs.
      functions: program name -> jitted function of the program's inputs.
    """

    stage: Stage
    functions: Mapping[str, jax.stages.Wrapped] = field(repr=False)


def stage_programs(
    written: Traced,
    plan: PlanFacts,
    info: StageSection,
    mesh: Mesh | AbstractMesh,
    microbatches: int,
    *,
    split_backward: bool,
    again: frozenset[int] = frozenset(),
) -> StagePrograms:
    """Lower a planned stage.

    Args:
      written: the stage's section as :func:`autopar.lower.emit.emit` wrote it.
      plan: a plan for it.
      info: what the stage does.
      mesh: its devices, with the plan's axes.
      microbatches: their number.
      split_backward: whether the schedule has tasks for the gradients of parameters alone.
      again: ids of ops of the forward pass that run again in the backward pass, where it reads their results.
    """
    segments = take_apart(written.step, plan, info, split_backward=split_backward, again=again)
    writer = _Writer(written, plan, mesh, microbatches, segments.index)
    counters = {k: f"count.{program_name(k)}" for k, s in segments.programs.items() if s.counts}
    buffers = {name: writer.buffer(name, form, scope) for name, (form, scope) in segments.buffers.items()}
    buffers |= {name: Buffer(name, (), "int32", (), "step") for name in counters.values()}
    programs: dict[str, Program] = {}
    functions: dict[str, jax.stages.Wrapped] = {}
    for k, segment in segments.programs.items():
        counter = counters.get(k)
        begun = tuple(counters.values()) if k == PREPARE else ()
        inputs = (*segment.inputs, *([counter] if counter else []))
        outputs = (*segment.outputs, *([counter] if counter else []), *begun)
        program = Program(program_name(k), inputs, outputs, frozenset(n for n in inputs if n in outputs))
        programs[program.name] = program
        functions[program.name] = writer.function(
            segment, _turns(segments, k, plan), program, buffers, counter, k >= UPDATE
        )
    used = {n for p in programs.values() for n in (*p.inputs, *p.outputs)}
    used |= {name for name, b in buffers.items() if b.scope == "state"}
    stage = Stage(
        info.index,
        tuple((a.name, a.size) for a in plan.mesh),
        {name: b for name, b in buffers.items() if name in used},
        programs,
    )
    return StagePrograms(stage, functions)


class _Writer:
    def __init__(
        self, written: Traced, plan: PlanFacts, mesh: Mesh | AbstractMesh, microbatches: int, index: int | None
    ) -> None:
        self.written = written
        self.plan = plan
        self.mesh = mesh
        self.microbatches = microbatches
        self.index = index
        self.values = written.step.graph.values

    def buffer(self, name: str, form: Form, scope: str) -> Buffer:
        """How a form lies as a global array: a sum that is still owed over an axis has a dim for it, in front."""
        v, layout = form
        value, axes = self.values[v], self.plan.mesh
        owed = [axes[a] for a, p in enumerate(layout) if p <= SUM]
        shape: tuple[int, ...] = (*(a.size for a in owed), *value.shape)
        spec = (*((a.name,) for a in owed), *self._spec(v, layout))
        if value.dtype in KEY_IMPLS:
            key = jax.ShapeDtypeStruct((), self.written.avals[v].dtype)
            words = jax.eval_shape(jax.random.key_data, key).shape[-1]
            return Buffer(name, (*shape, words), "uint32", (*spec, ()), scope)
        return Buffer(name, shape, value.dtype, spec, scope)

    def _spec(self, v: int, layout: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(self._names(layout, d) for d in range(len(self.values[v].shape)))

    def _names(self, layout: tuple[int, ...], dim: int) -> tuple[str, ...]:
        return tuple(self.plan.mesh[a].name for a, p in enumerate(layout) if p == dim)

    def function(
        self,
        segment: Segment,
        in_turn: Sequence[Turn],
        program: Program,
        buffers: Mapping[str, Buffer],
        counter: str | None,
        joins: bool,
    ) -> jax.stages.Wrapped:
        """The jitted program. Where it ``joins``, buffers of micro-batches come one argument each."""
        copies = [self.microbatches if joins and buffers[n].scope == "microbatch" else 1 for n in program.inputs]
        decisions = Decisions(self.plan.ops, self.plan.layouts, self.plan.moves, self.plan.remade)
        constants = sorted(segment.constants)
        captured = tuple(self.written.constants[v] for v in constants)
        captured_specs = tuple(PartitionSpec(*self._spec(v, self.plan.layouts[v])) for v in constants)

        def local(*arrays: Array) -> tuple[Array, ...]:
            evaluator = Evaluator(self.written, decisions, Axes(self.plan.axis_names, self.plan.mesh_shape))
            scope = Scope()
            rest = list(arrays)
            for v in reversed(constants):
                scope.put(v, self.plan.layouts[v], rest.pop())
            count = None
            for name, number in zip(program.inputs, copies, strict=True):
                taken, rest = rest[:number], rest[number:]
                if name == counter:
                    count = taken[0]
                    continue
                for v, layout in segment.inputs[name]:
                    parts = [self._inside(x, v, layout) for x in taken]
                    joined = jnp.stack(parts) if joins and buffers[name].scope == "microbatch" else parts[0]
                    scope.put(v, layout, joined)
            if count is not None and self.index is not None:
                scope.put(self.index, self.plan.layouts[self.index], count)
            for turn in in_turn:
                if turn.after is not None:
                    _wait(turn.after, turn.kept, scope)
                evaluator.ops(turn.ops, scope)
            found = []
            for name in program.outputs:
                if name in segment.outputs:
                    (v, layout), late = segment.outputs[name]
                    found.append(self._outside(evaluator.read(scope, v, layout, late=late), v, layout))
                else:
                    found.append(jnp.int32(0) if count is None else count + 1)
            return tuple(found)

        ins = [buffer_spec(buffers[n]) for n, number in zip(program.inputs, copies, strict=True) for _ in range(number)]
        outs = tuple(buffer_spec(buffers[n]) for n in program.outputs)
        in_specs = (*ins, *captured_specs)
        mapped = jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=outs, check_vma=False)
        owners = [n for n, number in zip(program.inputs, copies, strict=True) for _ in range(number)]

        def whole(*arrays: Array) -> tuple[Array, ...]:
            return mapped(*arrays, *captured)

        whole.__name__ = program.name.replace(".", "_")
        return jax.jit(
            whole,
            in_shardings=tuple(NamedSharding(self.mesh, s) for s in ins),
            out_shardings=tuple(NamedSharding(self.mesh, s) for s in outs),
            donate_argnums=tuple(i for i, n in enumerate(owners) if n in program.donated),
        )

    def _inside(self, x: Array, v: int, layout: tuple[int, ...]) -> Array:
        """A part of a buffer as the value's part."""
        if self.values[v].dtype in KEY_IMPLS:
            x = jax.random.wrap_key_data(x, impl=KEY_IMPLS[self.values[v].dtype])
        owed = sum(p <= SUM for p in layout)
        return x.reshape(x.shape[owed:]) if owed else x

    def _outside(self, x: Array, v: int, layout: tuple[int, ...]) -> Array:
        """The inverse of :meth:`_inside`."""
        if not isinstance(x, jax.Array):
            x = jnp.asarray(x, self.written.avals[v].dtype)
        owed = sum(p <= SUM for p in layout)
        x = x.reshape((1,) * owed + x.shape) if owed else x
        return jax.random.key_data(x) if self.values[v].dtype in KEY_IMPLS else x


def _turns(segments: Segments, k: int, plan: PlanFacts) -> tuple[Turn, ...]:
    """The ops of a program, in turns where the compiler minds them."""
    if Cluster.from_dict(plan.cluster).device.reordered:
        return (Turn(None, (), tuple(segments.programs[k].ops)),)
    return tuple(turns(segments, k, plan))


def _wait(after: Form, kept: Sequence[Form], scope: Scope) -> None:
    """Let what is read of the forward pass depend on a value of the backward pass: its readers then run no earlier."""
    found = {form: x for form in kept if (x := scope.get(form[0], False, form[1])) is not None and not _is_key(x)}
    *waited, _ = jax.lax.optimization_barrier((*found.values(), scope.get(after[0], False, after[1])))
    for (v, layout), array in zip(found, waited, strict=True):
        scope.put(v, layout, array)


def _is_key(x: Array) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


__all__ = ["StagePrograms", "stage_programs"]
