"""From a plan of several stages to compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh

from autopar.api.plan import Plan
from autopar.errors import PlanError
from autopar.lower import (
    StagedStep,
    StagePrograms,
    Unstacked,
    assemble,
    compiled,
    device_mesh,
    stage_programs,
    unstacked,
)
from autopar.runtime import program_avals
from autopar.schedule import Kind, Pipeline, make_schedule
from autopar.trace import Traced


@dataclass(frozen=True)
class Built:
    """A plan's stages, lowered.

    Attributes:
      unstacked: the step whose stages they are; its arguments are parts of the user's.
      pipeline: what a runtime runs.
      programs: each stage's functions.
      meshes: each stage's devices.
    """

    unstacked: Unstacked
    pipeline: Pipeline
    programs: tuple[StagePrograms, ...]
    meshes: tuple[Mesh | AbstractMesh, ...]


def build(traced: Traced, plan: Plan, devices: Sequence[jax.Device] | None) -> Built:
    """Lower every stage of a plan.

    Args:
      traced: the step.
      plan: a plan of stages for it.
      devices: as many as the plan's cluster has; a stage gets those of its ids. None lowers for devices elsewhere.

    Raises:
      PlanError: the plan was made for another step.
    """
    if plan.fingerprint != traced.step.graph.fingerprint:
        raise PlanError(
            f"the plan was made for another step than this {traced.step.name!r}, or for other shapes (fingerprint "
            f"{plan.fingerprint[:8]}, this step {traced.step.graph.fingerprint[:8]}). Plan again."
        )
    parts = unstacked(traced, plan.chunks)
    staged = StagedStep(parts.traced, plan.microbatches, per_microbatch=plan.per_microbatch)
    staging = staged.staging(tuple(stage.begin for stage in plan.stages))
    workers = len({stage.devices for stage in plan.stages})
    schedule = make_schedule(plan.schedule, len(plan.stages), plan.microbatches, workers)
    lowered: list[StagePrograms] = []
    meshes: list[Mesh | AbstractMesh] = []
    for info, stage in zip(staging.stages, plan.stages, strict=True):
        written = staged.written(info)
        if written.step.graph.fingerprint != stage.plan.fingerprint:
            raise PlanError(
                f"the plan's stage {info.index} was made for another version of {plan.name!r}: the step as a whole "
                "agrees, this stage does not. Plan again."
            )
        if devices is None:
            mesh: Mesh | AbstractMesh = AbstractMesh(stage.plan.mesh_shape, stage.plan.axis_names)
        else:
            mesh = device_mesh(stage.plan, devices[slice(*stage.devices)])
        meshes.append(mesh)
        lowered.append(
            stage_programs(
                written,
                stage.plan,
                info,
                mesh,
                plan.microbatches,
                split_backward=Kind.WEIGHT in schedule.kinds,
                again=staged.recomputable.dropped(stage.units[0], stage.remat),
            )
        )
    return Built(
        parts, assemble(parts.traced.step, staged.timing, staging, schedule, lowered), tuple(lowered), tuple(meshes)
    )


def compile_stages(built: Built, meshes: Sequence[Mesh]) -> list[dict[str, jax.stages.Compiled]]:
    """Each stage's programs, compiled for its devices, by name."""
    microbatches = built.pipeline.schedule.microbatches
    found: list[dict[str, jax.stages.Compiled]] = []
    for stage, programs, mesh in zip(built.pipeline.stages, built.programs, meshes, strict=True):
        lowered = {
            name: programs.functions[name].lower(*program_avals(stage, program, mesh, microbatches))
            for name, program in stage.programs.items()
        }
        found.append({name: compiled(program, mesh) for name, program in lowered.items()})
    return found


__all__ = ["Built", "build", "compile_stages"]
