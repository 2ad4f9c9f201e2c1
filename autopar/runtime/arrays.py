"""Buffers as jax arrays: their shardings, and the micro-batches of what the driver feeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from autopar.errors import PlanError
from autopar.lower import buffer_spec
from autopar.runtime.instructions import Register, registers
from autopar.schedule import Buffer, Feed, Pipeline, Program, Stage


def sharding(buffer: Buffer, mesh: Mesh) -> NamedSharding:
    """How a buffer lies on its stage's devices."""
    return NamedSharding(mesh, buffer_spec(buffer))


def buffers_of(stage: Stage, names: Sequence[str], program: Program, microbatches: int) -> tuple[Buffer, ...]:
    """The buffer behind each argument or result of a program.

    Args:
      stage: the stage.
      names: ``program.inputs`` or ``program.outputs``.
      program: one of its programs.
      microbatches: of the schedule: a program that runs once gets all of a micro-batch's buffers.
    """
    once = program.name not in ("forward", "backward", "weight")
    return tuple(
        stage.buffers[name]
        for name in names
        for _ in range(microbatches if once and stage.buffers[name].scope == "microbatch" else 1)
    )


def program_avals(
    stage: Stage, program: Program, mesh: Mesh | AbstractMesh, microbatches: int
) -> list[jax.ShapeDtypeStruct]:
    """What a program's arguments look like, with their shardings on ``mesh``."""
    buffers = buffers_of(stage, program.inputs, program, microbatches)
    return [jax.ShapeDtypeStruct(b.shape, b.dtype, sharding=NamedSharding(mesh, buffer_spec(b))) for b in buffers]


def cut(pipeline: Pipeline, feed: Feed, value: Any) -> dict[Register, Any]:
    """An argument as the registers that it fills: whole, or one equal part per micro-batch, in order.

    Raises:
      PlanError: it does not have the shape or dtype that the pipeline was made for.
    """
    buffer = pipeline.stages[feed.stage].buffers[feed.buffer]
    count = pipeline.schedule.microbatches if feed.dim is not None else 1
    shape = tuple(n * count if dim == feed.dim else n for dim, n in enumerate(buffer.shape))
    value = _array(value)
    if value.shape != shape or value.dtype != np.dtype(buffer.dtype):
        raise PlanError(
            f"argument {feed.argument} of {pipeline.name} is {value.dtype}{list(value.shape)}, but the pipeline was "
            f"made for {buffer.dtype}{list(shape)}. Pass arrays like the example, or make a new plan."
        )
    names = registers(buffer, feed.stage, pipeline.schedule.microbatches)
    if feed.dim is None:
        return dict.fromkeys(names, value)
    size = buffer.shape[feed.dim]
    before = (slice(None),) * feed.dim
    return {register: value[(*before, slice(part * size, (part + 1) * size))] for part, register in enumerate(names)}


def stage_meshes(pipeline: Pipeline, devices: Sequence[jax.Device]) -> tuple[Mesh, ...]:
    """Each stage's mesh; the workers take the devices one after another.

    Raises:
      PlanError: there are too few devices.
    """
    schedule = pipeline.schedule
    size = {schedule.worker_of[s.index]: math.prod(n for _, n in s.mesh) for s in pipeline.stages}
    need = sum(size.values())
    if len(devices) < need:
        raise PlanError(
            f"{pipeline.name} is cut into {len(pipeline.stages)} stages on {need} devices, and there are "
            f"{len(devices)}. Plan for a smaller cluster, or pass more devices."
        )
    start = {worker: sum(size[w] for w in range(worker)) for worker in size}
    return tuple(mesh_of(s, devices[start[schedule.worker_of[s.index]] :]) for s in pipeline.stages)


def mesh_of(stage: Stage, devices: Sequence[jax.Device]) -> Mesh:
    """A stage's mesh over the first of ``devices``."""
    sizes = tuple(size for _, size in stage.mesh)
    chosen = np.array(devices[: math.prod(sizes)], dtype=object).reshape(sizes)
    return Mesh(chosen, tuple(name for name, _ in stage.mesh))


def check_state(pipeline: Pipeline, arguments: Mapping[int, Any] | Sequence[Any]) -> None:
    """Checks the first values of the state.

    Raises:
      PlanError: a leaf does not have the shape or dtype that the pipeline was made for.
    """
    for keep in pipeline.keeps:
        buffer = pipeline.stages[keep.stage].buffers[keep.buffer]
        leaf = _array(arguments[keep.argument])
        if leaf.shape != buffer.shape or leaf.dtype != np.dtype(buffer.dtype):
            raise PlanError(
                f"argument {keep.argument} of {pipeline.name} is {leaf.dtype}{list(leaf.shape)}, but the pipeline was "
                f"made for {buffer.dtype}{list(buffer.shape)}. Pass a state like the example, or make a new plan."
            )


def _array(value: Any) -> Any:
    return value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)
