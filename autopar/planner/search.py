"""Plan a step: every mesh shape, coarse before fine where coarse guides fine, the best plan and its runners-up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from autopar.collector import collector_paused
from autopar.errors import AutoparError, ClusterError, InfeasibleError, OptionError, SolverError
from autopar.ir import Step
from autopar.mesh import Cluster, LogicalMesh
from autopar.plan import PlanFacts, RunnerUp
from autopar.planner.hinted import check_hints
from autopar.planner.notices import warnings_of
from autopar.planner.one_mesh import AT_LEAST, Candidate, MeshProgram, NoRoomError, Prepared, prepare
from autopar.planner.options import Options
from autopar.planner.prune import Guide, parents
from autopar.planner.record import Site, call_s, with_call, work_seconds, write_plan
from autopar.planner.shortage import ShortageError, least_peaks, shortage
from autopar.units import seconds_text

Progress = Callable[[str], None]

_AT_ONCE = 2


def plan_step(
    step: Step,
    cluster: Cluster,
    options: Options,
    progress: Progress = lambda _: None,
    *,
    last_resort: bool = True,
) -> PlanFacts:
    """The best plan for a step on a cluster.

    Args:
      step: the traced step.
      cluster: the machine.
      options: what to search, and how long.
      progress: called with a line of text as mesh shapes are tried.
      last_resort: where no mesh has a plan, search on for the one that needs the least memory, and say how short it
        is. It takes most of a minute.

    Raises:
      OptionError: a hint names nothing.
      InfeasibleError: nothing fits into memory, or the hints contradict each other.
      SolverError: the solver is missing or found nothing in time.
    """
    meshes = candidate_meshes(cluster, options)
    with collector_paused():
        prepared = prepare(step, options)
        check_hints(prepared.atoms, options.known)
        _check_whole(options)
        search = _MeshSearch(prepared, cluster, options, frozenset(mesh.shape for mesh in meshes), progress)
        guided = len(prepared.classes.members) > options.prune_above
        guiding = coarse_meshes(cluster, meshes) if guided else ()
        for wave in _waves((*guiding, *meshes), guided=guided):
            search.run(wave, guided=guided)
        if search.best is None and last_resort:
            search.last_resort(guided=guided)
    best = search.best
    if best is None:
        raise search.failure()
    warnings = [*search.left_out, *warnings_of(best.atoms)]
    plan = write_plan(best.atoms, best.priced, cluster, best.mesh, options.strategy, best.certificate, warnings)
    others = sorted((_runner_up(c) for c in search.candidates if c is not best), key=lambda r: r.step_s)
    plan = dataclasses.replace(plan, runners_up=tuple(others))
    return with_call(plan, call_s(plan, cluster.device))


def _check_whole(options: Options) -> None:
    """Hints about stages need stages.

    Raises:
      OptionError: there is one, and no stage.
    """
    for hint in options.known:
        if hint.kind == "stage":
            raise OptionError(f"hint '{hint}' needs stages: Options(microbatches=8, max_stages=2), or more of them.")
        if hint.kind == "mesh":
            shape = ", ".join(map(str, hint.mesh_shape))
            raise OptionError(
                f"hint '{hint}' is about the mesh of one stage, and this plan has no stages: Options(mesh=({shape},)) "
                "is the mesh of the whole step, Options(max_stages=2) allows stages."
            )


@dataclass(frozen=True)
class PricedPlan:
    """A plan, and what it costs op by op.

    Attributes:
      facts: the plan.
      work_s: op id -> seconds per step, without what it communicates.
      sites: where it communicates.
    """

    facts: PlanFacts
    work_s: Mapping[int, float] = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)


class AnyPrice:
    """Plans of a step on one mesh in unlimited memory, whatever memory costs: the program is built once.

    Args:
      step: the traced step.
      cluster: the machine.
      options: what to search on ``options.mesh``, and how long.
      prepared: of this step and these options, if it is known from another cluster or mesh.

    Raises:
      InfeasibleError: the hints contradict each other.
    """

    def __init__(self, step: Step, cluster: Cluster, options: Options, prepared: Prepared | None = None) -> None:
        (self._mesh,) = candidate_meshes(cluster, options)
        self._cluster, self._options = cluster, options
        self._program = MeshProgram(prepared or prepare(step, options), cluster, self._mesh, options, {})

    def plan(self, price: float) -> PricedPlan:
        """The best plan where memory costs ``price``, seconds per GiB.

        Raises:
          SolverError: the solver is missing or found nothing in time.
        """
        options = dataclasses.replace(self._options, memory_price=price)
        found = self._program.solve(options, math.inf, options.time_limit_s, again=True)
        arguments = (self._cluster, self._mesh, options.strategy, found.certificate, warnings_of(found.atoms))
        facts = write_plan(found.atoms, found.priced, *arguments)
        work_s = work_seconds(found.atoms, found.priced, self._program.weigher)
        return PricedPlan(facts, work_s, found.priced.sites)


def _waves(meshes: Sequence[LogicalMesh], *, guided: bool) -> tuple[list[LogicalMesh], ...]:
    """Meshes in the order to try them; what one wave finds spares work in the next.

    First the squarest mesh of two axes, as its plans are seldom far from the best; with ``guided``, meshes of three
    axes come last.
    """
    flat = [m for m in meshes if len(m.shape) == 2]
    first = min(flat, key=lambda m: abs(math.log(m.shape[0] / m.shape[1])), default=None)
    waves: tuple[list[LogicalMesh], ...] = ([], [], [])
    for mesh in meshes:
        waves[0 if mesh is first else 2 if guided and len(mesh.shape) > 2 else 1].append(mesh)
    return waves


def _runner_up(found: Candidate) -> RunnerUp:
    certificate = found.certificate
    if certificate.status == AT_LEAST:
        return RunnerUp(found.mesh.shape, certificate.bound_s, None, AT_LEAST)
    return RunnerUp(found.mesh.shape, found.priced.step_s, found.priced.memory.peak_bytes, certificate.status)


class _MeshSearch:
    """Tries meshes, two at a time: while one is being solved, the next is being built.

    (The solver runs without Python's lock, construction needs it.)
    """

    def __init__(
        self,
        prepared: Prepared,
        cluster: Cluster,
        options: Options,
        wanted: Collection[tuple[int, ...]],
        progress: Progress,
    ) -> None:
        self.wanted = wanted  # other meshes only guide
        self.prepared = prepared
        self.cluster = cluster
        self.options = options
        self.progress = progress
        self.deadline = time.monotonic() + options.time_limit_s
        self.worth_s = math.inf
        self.found: list[Candidate] = []
        self.guides: dict[tuple[int, ...], Guide] = {}
        self.no_room: list[NoRoomError] = []
        self.skipped: list[LogicalMesh] = []  # as their coarser meshes do not fit
        self.failures: list[InfeasibleError] = []
        self.unsolved: dict[tuple[int, ...], SolverError] = {}
        self.untried: list[tuple[int, ...]] = []

    def run(self, meshes: Sequence[LogicalMesh], *, guided: bool) -> None:
        """Try meshes; those that are coarse guide later runs."""
        if self.best is not None:
            self.worth_s = self.best.priced.cost_s * (1 - self.options.mip_gap)
        if len(meshes) < 2:
            for mesh in meshes:
                self.attempt(mesh, 1, guided=guided)
            return
        pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
        try:
            left = range(len(meshes), 0, -1)
            list(pool.map(lambda mesh, n: self.attempt(mesh, n, guided=guided), meshes, left))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def attempt(self, mesh: LogicalMesh, left: int, *, guided: bool) -> None:
        """Try one mesh, with a share of the time for the ``left`` meshes that remain."""
        time_left = self.deadline - time.monotonic()
        if self.found and time_left <= 0:
            self.untried.append(mesh.shape)
            return
        coarser = parents(mesh.shape) if guided else ()
        if coarser and not any(shape in self.guides for shape in coarser):
            self.skipped.append(mesh)
            self.progress(f"mesh {_shape(mesh.shape)}: not tried, its coarser meshes do not fit")
            return
        limit_s = max(min(time_left, time_left / left * 2 * _AT_ONCE), 1.0)
        try:
            lenient = mesh.shape not in self.wanted
            program = MeshProgram(self.prepared, self.cluster, mesh, self.options, self.guides, lenient=lenient)
            budget = self.options.memory_bytes or self.cluster.device.memory_bytes
            candidate = program.solve(self.options, budget, limit_s, self.worth_s)
        except NoRoomError as error:
            if self.best is None:
                self.no_room.append(error)
            self.progress(f"mesh {_shape(mesh.shape)}: does not fit")
            return
        except InfeasibleError as error:
            self.failures.append(error)
            self.progress(f"mesh {_shape(mesh.shape)}: a hint cannot be kept")
            if guided:
                self._guide(mesh, limit_s)
            return
        except SolverError as error:  # another mesh may still have a plan
            self.unsolved[mesh.shape] = error
            self.progress(f"mesh {_shape(mesh.shape)}: no plan in time")
            return
        self.keep(candidate, guided=guided)
        certificate = candidate.certificate
        if certificate.status == AT_LEAST:
            self.progress(f"mesh {_shape(mesh.shape)}: at least {certificate.bound_s:.4g} s")
        else:
            self.progress(f"mesh {_shape(mesh.shape)}: {certificate.objective_s:.4g} s, {certificate.status}")

    def _guide(self, mesh: LogicalMesh, limit_s: float) -> None:
        """Let a mesh on which a hint cannot be kept guide finer ones nevertheless, without that hint."""
        with contextlib.suppress(InfeasibleError, SolverError):
            program = MeshProgram(self.prepared, self.cluster, mesh, self.options, {}, lenient=True)
            guide = program.solve(self.options, math.inf, limit_s).guide
            if guide is not None:
                self.guides[mesh.shape] = guide

    def keep(self, candidate: Candidate, *, guided: bool) -> None:
        """Take a candidate up; with a plan, nobody asks any more how short other meshes are, and programs are large."""
        if candidate.guide is not None and guided:
            self.guides[candidate.mesh.shape] = candidate.guide
        self.found.append(candidate)
        if self.best is not None:
            self.no_room.clear()

    def last_resort(self, *, guided: bool) -> None:
        """Where no plan was found on any mesh: seek the smallest; if that does not fit either, say how short it is.

        Of meshes that only guide, the smallest plan lets those that it guides be tried.
        """
        errors = {error.unfit.mesh.shape: error for error in self.no_room}
        asked = [shape for shape in errors if shape in self.wanted]
        found = least_peaks([errors[shape].unfit for shape in asked or errors])
        if not found:
            return
        least, skipped = found[0], self.skipped
        smallest = least.smallest
        if smallest is None or least.enough_bytes > least.unfit.budget or not (asked or skipped):
            shapes = [x.unfit.mesh.shape for x in found]
            self.failures.append(shortage(least, _others(shapes, [x for x in asked or errors if x not in shapes])))
            return
        self.keep(errors[least.unfit.mesh.shape].accept(smallest), guided=guided)
        if not asked:
            self.skipped = []
            self.run(skipped, guided=guided)
            if self.best is None:
                self.last_resort(guided=guided)

    @property
    def candidates(self) -> list[Candidate]:
        """What was found on the meshes that were asked for."""
        return [c for c in self.found if c.mesh.shape in self.wanted]

    @property
    def best(self) -> Candidate | None:
        """The fastest plan."""
        plans = [c for c in self.candidates if c.certificate.status != AT_LEAST]
        return min(plans, key=lambda c: c.priced.cost_s, default=None)

    def failure(self) -> AutoparError:
        """Why there is no plan at all."""
        if self.unsolved:
            return next(iter(self.unsolved.values()))
        failures = [*self.failures, *self.no_room]
        return next((e for e in failures if isinstance(e, ShortageError)), failures[0])

    @property
    def left_out(self) -> list[str]:
        """What the user should know of meshes that have no plan for want of time."""
        said = [f"mesh {_shape(m)} was left out: {error}" for m, error in self.unsolved.items() if m in self.wanted]
        late = [_shape(m) for m in self.untried if m in self.wanted]
        if late:
            said.append(
                f"the time limit of {seconds_text(self.options.time_limit_s)} ended before mesh {', '.join(late)} was "
                "tried; raise Options(time_limit_s=...) to try all."
            )
        return said


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


def _others(compared: Sequence[tuple[int, ...]], late: Sequence[tuple[int, ...]]) -> str:
    """What to say of the meshes that an error is not about."""
    said = (
        f" Of the {len(compared)} meshes compared, this is the one with the smallest plan found."
        if len(compared) > 1
        else ""
    )
    if late:
        said += f" There was no time to compare it with mesh {', '.join(map(_shape, late))}."
    return said


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


__all__ = ["AnyPrice", "PricedPlan", "candidate_meshes", "plan_step"]
