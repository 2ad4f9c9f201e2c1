"""Plan a step: every mesh shape, coarse before fine where coarse guides fine, the best plan and its runners-up."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from autopar.errors import ClusterError, InfeasibleError, SolverError
from autopar.ir import Step
from autopar.mesh import Cluster, LogicalMesh
from autopar.plan import PlanFacts, RunnerUp
from autopar.planner.atoms import Atoms
from autopar.planner.one_mesh import Candidate, prepare, solve_mesh
from autopar.planner.options import Options
from autopar.planner.prune import Guide, parents
from autopar.planner.record import write_plan
from autopar.units import seconds_text

Progress = Callable[[str], None]


def plan_step(step: Step, cluster: Cluster, options: Options, progress: Progress = lambda _: None) -> PlanFacts:
    """The best plan for a step on a cluster.

    Args:
      step: the traced step.
      cluster: the machine.
      options: what to search, and how long.
      progress: called with a line of text as mesh shapes are tried.

    Raises:
      InfeasibleError: nothing fits into memory, or the hints contradict each other.
      SolverError: the solver is missing or found nothing in time.
    """
    meshes = candidate_meshes(cluster, options)
    deadline = time.monotonic() + options.time_limit_s
    prepared = prepare(step, options)
    guiding = coarse_meshes(cluster, meshes) if len(prepared.classes.members) > options.prune_above else ()
    found: list[Candidate] = []
    failures: list[InfeasibleError] = []
    unsolved: list[SolverError] = []
    untried: list[str] = []
    guides: dict[tuple[int, ...], Guide] = {}
    for k, mesh in enumerate((*guiding, *meshes)):
        left = deadline - time.monotonic()
        if found and left <= 0:
            late = [_shape(m) for m in (*guiding, *meshes)[k:] if m in meshes]
            progress(f"time limit: {len(late)} mesh shapes not tried")
            untried.append(
                f"the time limit of {seconds_text(options.time_limit_s)} ended before mesh {', '.join(late)} was "
                "tried; raise Options(time_limit_s=...) to try all."
            )
            break
        coarser = parents(mesh.shape) if len(prepared.classes.members) > options.prune_above else ()
        if coarser and not any(shape in guides for shape in coarser):
            progress(f"mesh {_shape(mesh)}: not tried, its coarser meshes do not fit")
            continue
        share = left / (len(meshes) + len(guiding) - k) * 2
        try:
            candidate = solve_mesh(prepared, cluster, mesh, options, max(min(left, share), 1.0), guides)
        except InfeasibleError as error:
            failures.append(error)
            progress(f"mesh {_shape(mesh)}: does not fit")
            continue
        except SolverError as error:  # another mesh may still have a plan
            unsolved.append(error)
            progress(f"mesh {_shape(mesh)}: no plan in time")
            untried.append(f"mesh {_shape(mesh)} was left out: {error}")
            continue
        if candidate.guide is not None and len(prepared.classes.members) > options.prune_above:
            guides[mesh.shape] = candidate.guide
        progress(f"mesh {_shape(mesh)}: {candidate.priced.step_s:.4g} s, {candidate.certificate.status}")
        if mesh in meshes:
            found.append(candidate)
    if not found and unsolved:
        raise unsolved[0]
    if not found:
        raise min(failures, key=lambda e: getattr(e, "enough_bytes", math.inf))
    found.sort(key=lambda c: c.priced.step_s)
    best = found[0]
    plan = write_plan(
        best.atoms,
        best.priced,
        cluster,
        best.mesh,
        options.strategy,
        best.certificate,
        [*untried, *warnings_of(best.atoms)],
    )
    others = tuple(
        RunnerUp(c.mesh.shape, c.priced.step_s, c.priced.memory.peak_bytes, c.certificate.status) for c in found[1:]
    )
    return dataclasses.replace(plan, runners_up=others)


def coarse_meshes(cluster: Cluster, meshes: Sequence[LogicalMesh]) -> tuple[LogicalMesh, ...]:
    """Meshes that guide the fine ones among ``meshes`` and are not among them."""
    known = {mesh.shape for mesh in meshes}
    wanted = dict.fromkeys(shape for mesh in meshes for shape in parents(mesh.shape) if shape not in known)
    return tuple(cluster.mesh(shape) for shape in wanted)


def candidate_meshes(cluster: Cluster, options: Options) -> tuple[LogicalMesh, ...]:
    """The mesh shapes to try.

    Raises:
      ClusterError: the mesh asked for does not have the cluster's number of devices.
    """
    if options.mesh is None:
        return cluster.meshes(options.max_axes)
    if math.prod(options.mesh) != cluster.devices:
        raise ClusterError(
            f"mesh {'x'.join(map(str, options.mesh))} has {math.prod(options.mesh)} devices, but cluster "
            f"{cluster.name!r} has {cluster.devices}. Choose axis sizes whose product is {cluster.devices}."
        )
    return (cluster.mesh(options.mesh),)


def warnings_of(atoms: Atoms) -> list[str]:
    """Opaque primitives, and arguments with dims that no axis divides."""
    found: dict[str, None] = {}
    for atom in atoms.atoms:
        op = atom.op
        if atom.kind == "op" and op is not None and op.opaque:
            found[
                f"{op.primitive} at {op.where.line} has no rule: it runs on gathered operands. "
                "autopar.register_rule can give it one."
            ] = None
    sizes = "x".join(map(str, atoms.mesh))
    axes = [size for size in atoms.mesh if size > 1]
    batch = {atoms.step.graph.inputs[i] for i in atoms.step.batch}
    for v in atoms.step.graph.inputs:
        value = atoms.step.graph.values[v]
        dims = [n for n in value.shape if n > 1]
        whole = bool(axes and dims) and all(n % size for size in axes for n in dims)
        if whole:
            found[f"{value.name} of shape {value.shape}: no dim divides by an axis of mesh {sizes}; kept whole."] = None
        elif v in batch and axes and value.shape[:1] > (1,) and value.shape[0] % math.prod(axes):
            found[
                f"{value.name} of shape {value.shape}: dim 0 does not divide by the {math.prod(axes)} devices of mesh "
                f"{sizes}, so the batch cannot be split over all of them."
            ] = None
    return list(found)


def _shape(mesh: LogicalMesh) -> str:
    return "x".join(map(str, mesh.shape))


__all__ = ["candidate_meshes", "plan_step"]
