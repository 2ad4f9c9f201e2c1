"""Plan both levels: where to cut the step into stages, which devices each gets, and how each is sharded.

    units -> estimates of each unit on each submesh -> partition -> refined -> every stage planned -> simulated

1. Every kind of unit is planned alone on every shape of submesh (:mod:`autopar.planner.stages.survey`).
2. Dynamic programming over units and submeshes (:mod:`autopar.planner.stages.partition`) takes these for what the units
   of a stage cost together, and gives finalists and a bound. Of a cluster of islands, each gives finalists of its own,
   too: what it costs to join them is left to the simulation. So does a part of a cluster (one site), where what crosses
   its outer links takes longer than the rest of the cluster saves.
3. Their cuts are moved to where stages wait less for messages (:mod:`autopar.planner.stages.refine`).
4. Finalists are simulated task by task, with what stages send each other on the links that lie between them, under
   every schedule that may be used.
   Equal stages, as people set them up by hand, come along.
5. The stages of the best are planned as wholes, equal ones once, memory being as dear as it must be for the
   micro-batches in flight to fit, and simulated again. The fastest becomes the plan.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autopar.collector import collector_paused
from autopar.cost import transfer_s
from autopar.errors import ClusterError, InfeasibleError, OptionError
from autopar.mesh import Cluster, Submesh, link_between, place
from autopar.plan import PlanFacts
from autopar.planner.options import Options
from autopar.planner.stages.cost import CostOf, Partition, Span, StageCost, partition_s
from autopar.planner.stages.estimate import Estimate
from autopar.planner.stages.hinted import StageHints, stage_hints, unit_names
from autopar.planner.stages.partition import Finalists, even_cuts, even_partition, even_shapes, partition
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.stages.record import Candidate, write_stages
from autopar.planner.stages.refine import refined
from autopar.planner.stages.sharing import Shared
from autopar.planner.stages.survey import Survey
from autopar.schedule import Kind, Schedule, Task, flights, make_schedule
from autopar.simulate import simulate_schedule

Progress = Callable[[str], None]
Placed = tuple[range, ...]

_ANY = ("1f1b", "zb-h1", "gpipe")
_FILL = {"zb-h1": 1 / 3}  # of the stages' time, while the pipeline fills and drains; 1 for the others
_FINALISTS = 6
_PLANNED = 2  # finalists whose stages are planned as wholes
_MOVED = 2  # and so many of those whose cuts were moved by what that found: most of their stages are planned already


def plan_stages(
    problem: StagedProblem,
    cluster: Cluster,
    options: Options,
    progress: Progress = lambda _: None,
    shared: Shared | None = None,
    cut: Sequence[tuple[int, int]] | None = None,
) -> PlanFacts:
    """The best plan of several stages.

    Args:
      problem: the step, in its micro-batches.
      cluster: the machine.
      options: ``stages`` or ``max_stages``, ``schedule``, and how to plan each stage.
      progress: called with a line of text as the search goes on.
      shared: what other searches with the same problem and options have planned, and will.
      cut: units and devices of each stage, in order, instead of a search for them: what a plan of others costs here.

    Raises:
      OptionError: there are fewer units or devices than stages asked for; ``cut`` is none of this step on this cluster.
      InfeasibleError: no cut fits into memory.
    """
    try:
        with collector_paused():
            return _Search(problem, cluster, options, progress, shared, cut).run()
    finally:
        if shared is not None:
            shared.forget()


@dataclass
class _Search:
    problem: StagedProblem
    cluster: Cluster
    options: Options
    progress: Progress
    shared: Shared | None
    cut: Sequence[tuple[int, int]] | None
    shapes: tuple[Submesh, ...] = field(init=False)
    survey: Survey = field(init=False)
    hints: StageHints = field(init=False)

    def __post_init__(self) -> None:
        self.units = self.problem.units
        self.islands = [island.devices for island in self.cluster.islands]
        self.microbatches = self.problem.microbatches
        self.shapes = self.cluster.submeshes(powers=True)
        self.hints = stage_hints(self.problem, self.options)

    def run(self) -> PlanFacts:
        most = self._most_stages()
        if self.options.stages:
            self.shapes = self._even(self.options.stages)
        if self.options.mesh is not None:
            self.shapes = self._of_size(self.options.mesh, self.shapes)
        for hint in self.hints.meshes.values():
            self._of_size(hint.mesh_shape, self.shapes)
        if self.cut is not None:
            self.shapes = self._of_cut(self.cut)
        self.progress(f"{len(self.units)} units, up to {most} stages, {self.microbatches} micro-batches")
        self.survey = Survey(self.problem, self.cluster, self.options, self.shapes, self.shared, self.hints)
        partitions, bound_s = self._partitions(most)
        asked = f"{self.survey.solved} integer programs solved for {self.survey.asked} plans of units asked"
        self.progress(f"{asked}, {len(partitions)} cuts")
        cuts = self._refined([p.spans for p in partitions]) if self._movable else partitions
        exact, rough = self._planned([*cuts, *self._within(cuts, most), *self._equal(most)] if self._movable else cuts)
        if self._movable and not exact:  # cuts may have moved to where whole stages do not fit
            exact, rough = self._planned(partitions)
        if not exact and self.survey.refused is not None:
            raise self.survey.refused
        if not exact:
            raise InfeasibleError(
                f"no cut of {self.problem.step.name} into {self.options.stages or f'up to {most}'} stages fits into "
                f"{self._memory_text()} per device of cluster {self.cluster.name!r}, together with "
                "its micro-batches in flight. Use more devices, more micro-batches, or other stages."
            )
        best = min(exact, key=lambda c: c.step_s)
        self.progress(f"{best.step_s:.4g} s in {len(best.spans)} stages, {best.schedule.name}")
        return write_stages(self.problem, self.cluster, self.options, best, [*exact, *rough], bound_s)

    @property
    def _movable(self) -> bool:
        """Whether cuts may move: where they are equal, or given, they are as asked for."""
        return self.options.stages is None and self.cut is None

    def _most_stages(self) -> int:
        asked = self.options.stages or self.options.max_stages
        available = min(len(self.units), self.cluster.devices * self.options.stages_per_worker)
        if self.options.stages and self.options.stages > available:
            raise OptionError(
                f"{self.options.stages} stages were asked for, but {self.problem.step.name} has {len(self.units)} "
                f"units that may be a stage, and cluster {self.cluster.name!r} has {self.cluster.devices} devices. Ask "
                f"for at most {available} stages."
            )
        if self.options.stages and not self._even(asked):
            possible = ", ".join(str(n) for n in range(1, available + 1) if self._even(n))
            alone = ", all on one island" if len(self.islands) > 1 else ""
            raise OptionError(
                f"{asked} equal stages do not divide the {' + '.join(map(str, self.islands))} devices of cluster "
                f"{self.cluster.name!r} into parts that a stage may have: some devices of one host, or whole hosts"
                f"{alone}. Ask for {possible}{' stages, or for ' if possible else ''}"
                f"max_stages={max(asked, len(self.islands))}, whose stages may differ."
            )
        return min(asked, available)

    def _of_size(self, mesh: tuple[int, ...], among: Sequence[Submesh]) -> tuple[Submesh, ...]:
        devices = math.prod(mesh)
        shapes = tuple(shape for shape in among if shape.devices == devices)
        if not shapes:
            sizes, every = sorted({shape.devices for shape in among}), "every" if mesh == self.options.mesh else "a"
            raise OptionError(
                f"mesh {mesh} for {every} stage takes {devices} devices, but a stage can have "
                f"{', '.join(map(str, sizes))} of cluster {self.cluster.name!r}. Choose another mesh, or other stages."
            )
        return shapes

    def _of_cut(self, cut: Sequence[tuple[int, int]]) -> tuple[Submesh, ...]:
        """The shapes of a given cut; of one number of devices on several islands, the first."""
        shapes = {shape.devices: shape for shape in reversed(self.shapes)}
        units, devices = sum(n for n, _ in cut), sum(n for _, n in cut)
        if units != len(self.units) or devices > self.cluster.devices or any(u < 1 or n not in shapes for u, n in cut):
            raise OptionError(
                f"the cut {list(cut)} has {units} units on {devices} devices, but {self.problem.step.name} has "
                f"{len(self.units)} units, cluster {self.cluster.name!r} has {self.cluster.devices} devices, and a "
                f"stage can have {', '.join(map(str, sorted(shapes)))} of them."
            )
        return tuple(shapes[n] for n in sorted({n for _, n in cut}))

    def _given(self, cut: Sequence[tuple[int, int]]) -> Partition | None:
        """A given cut as a partition; None if a stage does not fit."""
        of_size = {shape.devices: k for k, shape in enumerate(self.shapes)}
        stops = itertools.accumulate(units for units, _ in cut)
        spans = tuple(Span(stop - units, stop, of_size[n]) for stop, (units, n) in zip(stops, cut, strict=True))
        costs = [self._cost(s.first, s.stop, s.shape, len(spans) - k) for k, s in enumerate(spans)]
        fitting = tuple(c for c in costs if c is not None)
        if len(fitting) < len(costs):
            return None
        return Partition(spans, fitting, partition_s(fitting, self.microbatches, self._fill))

    def _even(self, stages: int) -> tuple[Submesh, ...]:
        """The shapes of equal parts for so many stages; none if there is an island that they do not fill."""
        cuts = even_shapes(self.shapes, self.islands, stages, self.options.stages_per_worker)
        found = {shape for cut in cuts for shape in cut}
        return tuple(shape for k, shape in enumerate(self.shapes) if k in found)

    def _memory_text(self) -> str:
        """What the devices of a stage may hold, island by island where that differs."""
        sizes = {self.shapes[k].island: f"{n / 2**30:.3g} GiB" for k, n in enumerate(self.survey.memory_bytes)}
        if len(set(sizes.values())) == 1:
            return next(iter(sizes.values()))
        return " or ".join(f"{size} ({self.cluster.islands[k].device.name})" for k, size in sizes.items())

    def _cost(self, first: int, stop: int, shape: int, after: int) -> StageCost | None:
        if not self.hints.allows(first, stop, self.shapes[shape].devices):
            return None
        return self.survey.stage(first, stop, shape, min(after, self.microbatches))

    def _partitions(self, most: int) -> tuple[list[Partition], float]:
        """Finalists of all schedules, numbers of stages and islands allowed, and the least that any can take."""
        cost = self._cost
        exact = self.options.stages
        if self.cut is not None:
            given = self._given(self.cut)
            return ([given], given.step_s) if given is not None else ([], 0.0)
        if exact is not None:
            self.hints.check_cuts(even_cuts(len(self.units), exact)[:-1], unit_names(self.problem))
            rounds = self.options.stages_per_worker
            even = even_partition(
                len(self.units), self.shapes, self.islands, cost, self.microbatches, exact, rounds=rounds
            )
            return ([even], even.step_s) if even is not None else ([], 0.0)
        finalists = self._finalists(cost, most)
        if finalists is None:
            return [], 0.0
        found = list(finalists.partitions)
        if len(self.islands) > 1:  # the link between islands counts once a cut is simulated: one alone may be faster
            for island in range(len(self.islands)):
                alone = self._finalists(self._on_island(cost, island), most)
                found += alone.partitions if alone is not None else ()
        return list({p.spans: p for p in found}.values()), finalists.bound_s

    def _finalists(self, cost: CostOf, most: int, devices: Sequence[int] | None = None) -> Finalists | None:
        arguments = (len(self.units), self.shapes, devices or self.islands, cost, self.microbatches)
        return partition(*arguments, max_stages=most, fill=self._fill, idle=True, keep=_FINALISTS)

    def _within(self, cuts: Sequence[Partition], most: int) -> list[Partition]:
        """Cuts that stay below an outer level (on one site, say), where those that cross it wait too long for it.

        Dynamic programming knows of no transfers, so it would always take all devices. Only cuts are given that, before
        they are simulated, promise to be faster than ``cuts`` are when simulated.
        """
        levels = self.cluster.levels
        if len(self.islands) > 1 or len(levels) == 1 or not cuts:
            return []
        found: list[Partition] = []
        for level in range(1, len(levels)):
            simulated = self._sorted([*cuts, *found])
            devices = math.prod(each.size for each in levels[:level])
            alone = self._finalists(self._below(self._cost, level), min(most, devices), [devices])
            best_s = min((c.step_s for c in simulated), default=math.inf)
            faster = [p for p in alone.partitions if p.step_s < best_s] if alone is not None else []
            found += self._refined([p.spans for p in faster])
        return found

    def _equal(self, most: int) -> list[Partition]:
        """What people set up by hand: equal stages on equal submeshes, which keep apart what crosses hosts.

        Dynamic programming knows of no transfers, so some of these are faster than what it finds.
        """
        arguments = (len(self.units), self.shapes, self.islands, self._cost, self.microbatches)
        cuts = (even_partition(*arguments, n, fill=self._fill) for n in range(2, most + 1) if self._even(n))
        return [cut for cut in cuts if cut is not None]

    def _below(self, cost: CostOf, level: int) -> CostOf:
        """The same costs, as if a stage could not reach over a level."""
        return lambda first, stop, shape, after: (
            cost(first, stop, shape, after) if self.shapes[shape].level < level else None
        )

    @property
    def _fill(self) -> float:
        return _FILL.get(self.options.schedule, 1.0)

    def _on_island(self, cost: CostOf, island: int) -> CostOf:
        """The same costs, as if stages fitted on one island only."""
        return lambda first, stop, shape, after: (
            cost(first, stop, shape, after) if self.shapes[shape].island == island else None
        )

    def _refined(self, cuts: Sequence[tuple[Span, ...]]) -> list[Partition]:
        """Cuts moved to where stages wait less for messages."""
        found: dict[tuple[Span, ...], Partition] = {}
        for spans in cuts:
            placed = self._placed([span.shape for span in spans])
            if placed is None:
                continue
            round_trip_s = functools.partial(self._round_trip_s, placed, [span.shape for span in spans])
            moved = refined(spans, self._cost, round_trip_s, self.microbatches, self._fill)
            if moved is not None:
                found[moved.spans] = moved
        return list(found.values())

    def _round_trip_s(self, placed: Placed, shapes: Sequence[int], k: int, at: int) -> float:
        """Seconds for what stage ``k`` and the next send each other, if the next begins at unit ``at``."""
        if self.options.schedule == "gpipe":  # messages hide behind other micro-batches
            return 0.0
        sends, _ = self.survey.sent_bytes(at - 1, shapes[k])
        _, returns = self.survey.sent_bytes(at, shapes[k + 1])
        return self._message_s(placed[k], placed[k + 1], sends) + self._message_s(placed[k + 1], placed[k], returns)

    def _message_s(self, source: range, target: range, nbytes: float) -> float:
        """Seconds for bytes from the devices of one stage to those of another, each sending its part."""
        link = link_between(self.cluster, source, target)
        return transfer_s(link, nbytes / min(len(source), len(target)))

    def _placed(self, shapes: Sequence[int]) -> Placed | None:
        """The devices of each stage on a worker of its own; None if the cluster has no place for them together."""
        try:
            return place(self.cluster, tuple(self.shapes[k] for k in shapes))
        except ClusterError:
            return None

    # finalists

    def _simulated_roughly(self, cut: Partition) -> list[Candidate]:
        """A partition with the estimates of its units added up, under each schedule."""
        found = []
        for name in _ANY if self.options.schedule == "auto" else (self.options.schedule,):
            schedule = self._schedule(name, len(cut.spans))
            estimates = []
            for span, held in zip(cut.spans, flights(schedule), strict=True):
                stage = self.survey.rough(span, held)
                if stage is None:
                    break
                estimates.append(stage)
            else:
                found.append(self._simulated(schedule, cut.spans, estimates))
        return [c for c in found if c is not None]

    def _schedule(self, name: str, stages: int) -> Schedule:
        return make_schedule(name, stages, self.microbatches, stages // self.options.stages_per_worker)

    def _simulated(self, schedule: Schedule, spans: Sequence[Span], estimates: Sequence[Estimate]) -> Candidate | None:
        submeshes = tuple(self.shapes[s.shape] for s in spans)
        placed = self._placed([s.shape for s in spans[: len(schedule.workers)]])
        if placed is None:
            return None
        devices = tuple(placed[w] for w in schedule.worker_of)
        splits = Kind.WEIGHT in schedule.kinds

        def task_s(task: Task) -> float:
            e = estimates[task.stage]
            if task.kind == Kind.FORWARD:
                return e.forward_s
            if task.kind == Kind.WEIGHT:
                return e.weight_s
            return max(e.backward_s - (e.weight_s if splits else 0.0), 0.0)

        def between_s(source: int, target: int) -> float:
            e = estimates[source]
            return self._message_s(
                devices[source], devices[target], e.sends_bytes if target > source else e.returns_bytes
            )

        timeline = simulate_schedule(schedule, task_s, between_s)
        once_s = max(e.once_s for e in estimates)
        return Candidate(tuple(spans), submeshes, devices, schedule, tuple(estimates), timeline, once_s)

    # whole stages

    def _planned(self, cuts: Sequence[Partition]) -> tuple[list[Candidate], list[Candidate]]:
        """The best cuts with their stages planned as wholes, and all that were simulated roughly.

        What planning finds out about stages moves their cuts again, and what comes of that joins the candidates.
        """
        exact: list[Candidate] = []
        rough = self._sorted(cuts)
        finalists = {cut.spans for cut in cuts}
        planned, left = set[tuple[Span, ...]](), list(rough)
        while left and len(exact) < _PLANNED + _MOVED:
            candidate = left.pop(0)
            if any(c.step_s <= candidate.step_s for c in exact):
                break
            if candidate.spans in finalists - planned and len(finalists & planned) == _PLANNED:
                continue
            found = self._exact(candidate)
            if found is None:
                continue
            exact.append(found)
            planned.add(found.spans)
            if self._movable:
                known = {c.spans for c in rough}
                more = self._sorted([p for p in self._refined([found.spans]) if p.spans not in known])
                rough += more
                left = sorted([*left, *more], key=lambda c: c.step_s)
        return exact, rough

    def _sorted(self, cuts: Sequence[Partition]) -> list[Candidate]:
        """Cuts simulated roughly, the fastest first."""
        return sorted((c for cut in cuts for c in self._simulated_roughly(cut)), key=lambda c: c.step_s)

    def _exact(self, rough: Candidate) -> Candidate | None:
        begins = tuple(self.units[span.first].begin for span in rough.spans)
        splits = Kind.WEIGHT in rough.schedule.kinds
        found = self.survey.wholes(begins, rough.spans, flights(rough.schedule), split_backward=splits)
        if found is None:
            return None
        return self._simulated(rough.schedule, rough.spans, found)
