"""Plan a step on one cluster after another."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autopar.api.parallelize import compile_traced
from autopar.api.plan import Plan
from autopar.api.planning import as_cluster, plan_traced
from autopar.api.searching import trace_step
from autopar.api.sharing import Sharing
from autopar.api.staged import StagedExecutable
from autopar.errors import ClusterError, CouplingError, InfeasibleError, OptionError, PlanError, SolverError, nearest
from autopar.mesh import Cluster
from autopar.planner import STRATEGIES, Options
from autopar.report import sentence
from autopar.report.pipeline import cut_text
from autopar.simulate import simulate
from autopar.sweep.journal import Journal
from autopar.sweep.rows import NO_ROOM, PLANNED, REFUSED, Row, SweepResult
from autopar.sweep.running import measured_step_s

Progress = Callable[[str], None]
Done = Callable[[Row, int, int], None]


@dataclass(frozen=True)
class Case:
    """What is trained on a cluster.

    Attributes:
      fun: the step.
      args: its arguments: arrays or ``jax.ShapeDtypeStruct``.
      units: tokens in its batch, or whatever is counted.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    units: float = 1.0


def sweep(
    fun: Callable[..., Any] | Callable[[Cluster], Case],
    *args: Any,
    clusters: Sequence[str | Cluster],
    strategies: Sequence[str] = ("auto",),
    microbatches: Sequence[int | str] = (1,),
    options: Options | None = None,
    units: float = 1.0,
    unit: str = "steps",
    scaled: bool = False,
    donate_argnums: int | Sequence[int] = (),
    run_steps: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    done: Done | None = None,
) -> SweepResult:
    """Plan a step on many clusters, by many strategies, in many numbers of micro-batches.

    What plans have in common is worked out once: the trace, its units, and the plans of units on the shapes of submesh
    that clusters share. Where stages are planned, the prices of memory are rounded for that
    (``autopar.planner.stages.sharing``), so a row may differ a little from what :func:`autopar.plan` finds.

    Args:
      fun: the step, written for one device; with ``scaled`` a function of the cluster that returns a :class:`Case`.
      *args: the step's arguments, arrays or ``jax.ShapeDtypeStruct``; none with ``scaled``.
      clusters: names or clusters, in the order of the table.
      strategies: of :class:`autopar.Options`.
      microbatches: numbers, or ``"auto"``.
      options: all else that there is to say of the search.
      units: tokens in the batch, or whatever is counted; 1 counts steps.
      unit: what they are called.
      scaled: the batch grows with the cluster (weak scaling); without it stays the same (strong scaling).
      donate_argnums: as for ``jax.jit``.
      run_steps: if not 0, run every plan on this machine's devices, so many steps three times over, and put the
        measured seconds beside the predicted. The arguments must be arrays.
      out: a folder that keeps each row as it comes, and at the end ``sweep.csv`` and ``sweep.json``. An interrupted
        sweep that is asked again goes on there.
      progress: called with lines of text while planning.
      done: called with each row that comes, how many are done, and how many there are.

    Returns:
      The table; a point that has no plan is a row that says why.

    Raises:
      OptionError: something of it makes no sense, or ``out`` holds another sweep.
      ClusterError: a cluster is unknown.
      TraceError: the step cannot be traced.

    Example:
      >>> import jax, autopar
      >>> step = lambda w, x: w - 0.1 * jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
      >>> shapes = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
      >>> table = autopar.sweep(step, *shapes, clusters=["h100:1", "h100:2"], strategies=["auto", "data"])
      >>> [(row.cluster, row.strategy, row.status) for row in table.rows][:3]
      [('h100:1', 'auto', 'planned'), ('h100:1', 'data', 'planned'), ('h100:2', 'auto', 'planned')]
    """
    asked = options or Options()
    targets = _checked(clusters, strategies, microbatches, run_steps)
    same = Case(fun, args, units)
    case_of = fun if scaled else lambda cluster: same
    if scaled and args:
        raise OptionError("with scaled=True the arguments come with the Case of each cluster; pass none to sweep.")
    planned = _Sweep(case_of, donate_argnums, asked, run_steps, progress or (lambda _: None))
    points = [(c, s, m) for c in targets for s in strategies for m in microbatches]
    about = {
        "step": planned.known(targets[0]).traced.step.name,
        "fingerprint": planned.known(targets[0]).traced.step.graph.fingerprint,
        "clusters": [cluster.name for cluster in targets],
        "cluster fingerprints": [cluster.fingerprint for cluster in targets],
        "strategies": list(strategies),
        "microbatches": list(microbatches),
        "options": {k: v for k, v in dataclasses.asdict(asked).items() if k not in ("strategy", "microbatches")},
        "unit": unit,
        "scaled": scaled,
        "run_steps": run_steps,
    }
    journal = Journal(out, about) if out is not None else None
    rows: list[Row] = []
    for cluster, strategy, count in points:
        kept = journal.rows.get((cluster.name, strategy, count)) if journal is not None else None
        row = kept or planned.row(cluster, strategy, count)
        if journal is not None and kept is None:
            journal.add(row)
        rows.append(row)
        if done is not None:
            done(row, len(rows), len(points))
    result = SweepResult(tuple(rows), about)
    if out is not None:
        result.save(out)
    return result


def _checked(
    clusters: Sequence[str | Cluster], strategies: Sequence[str], microbatches: Sequence[int | str], run_steps: int
) -> list[Cluster]:
    for what, found in (("clusters", clusters), ("strategies", strategies), ("microbatches", microbatches)):
        if isinstance(found, str) or not found:
            raise OptionError(f"{what} must be a list of one or more, such as {_LISTS[what]}; found {found!r}.")
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise OptionError(f"unknown strategy {strategy!r}: {nearest(str(strategy), STRATEGIES)}")
    for count in microbatches:
        Options(microbatches=count)  # checks it
    if run_steps < 0:
        raise OptionError(f"run_steps is a number of steps, 0 or more; found {run_steps}.")
    targets = [as_cluster(cluster) for cluster in clusters]
    for what, names in (("cluster", [c.name for c in targets]), ("strategy", strategies), ("number", microbatches)):
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise OptionError(f"{what} {twice!r} is asked for twice; name each once.")
    return targets


_LISTS = {"clusters": "['h100:8', 'h100:2x8']", "strategies": "['auto', 'fsdp']", "microbatches": "[1, 8]"}


class _Sweep:
    """Plans points, keeping what they have in common: one trace for each batch."""

    def __init__(
        self,
        case_of: Callable[[Cluster], Case],
        donate_argnums: int | Sequence[int],
        options: Options,
        run_steps: int,
        progress: Progress,
    ) -> None:
        self.case_of, self.donate, self.options = case_of, donate_argnums, options
        self.run_steps, self.progress = run_steps, progress
        self._cluster: Cluster | None = None
        self._case: Case | None = None
        self._known: Sharing | None = None

    def known(self, cluster: Cluster) -> Sharing:
        """The traced step of a cluster, with what its plans have in common."""
        if self._known is None or self._cluster is not cluster:
            case = self.case_of(cluster)
            if self._known is None or case is not self._case:
                self._known = Sharing(trace_step(case.fun, case.args, {}, (), (), self.donate))
            self._cluster, self._case = cluster, case
        return self._known

    def row(self, cluster: Cluster, strategy: str, microbatches: int | str) -> Row:
        """Plan one point, and run it if asked to."""
        known = self.known(cluster)
        assert self._case is not None
        room = min(island.device.memory_bytes for island in cluster.islands)
        row = Row(
            cluster.name,
            cluster.devices,
            strategy,
            microbatches,
            self._case.units,
            PLANNED,
            memory_bytes=room if math.isfinite(room) else None,
        )
        options = dataclasses.replace(self.options, strategy=strategy, microbatches=microbatches, hint_costs=False)
        begin = time.perf_counter()
        try:
            plan = plan_traced(known.traced, cluster, options, self.progress, known)
            row = _filled(row, plan)
        except InfeasibleError as error:
            row = dataclasses.replace(row, status=NO_ROOM, why=str(error))
        except (ClusterError, CouplingError, OptionError, PlanError, SolverError) as error:
            row = dataclasses.replace(row, status=REFUSED, why=str(error))
        row = dataclasses.replace(row, planning_s=time.perf_counter() - begin)
        if not self.run_steps or row.status != PLANNED:
            return row
        step = compile_traced(known.traced, plan, None, options, None, "local", self.progress)
        seconds = measured_step_s(step, known.traced, self._case.args, self.run_steps)
        if isinstance(step, StagedExecutable):
            step.close()
        return dataclasses.replace(row, measured_step_s=seconds)


def _filled(row: Row, plan: Plan) -> Row:
    found = simulate(plan, units=row.units)
    return dataclasses.replace(
        row,
        plan=sentence(plan),
        stages=len(plan.stages),
        cut=cut_text([(s.units[1] - s.units[0], s.devices[1] - s.devices[0]) for s in plan.stages]),
        chosen_microbatches=plan.microbatches,
        schedule=plan.schedule,
        step_s=found.step_s,
        bubble=found.bubble,
        units_per_s=found.units_per_s or 0.0,
        mfu=found.mfu,
        hfu=found.hfu,
        peak_bytes=plan.peak_bytes,
        gap=plan.gap,
    )
