"""Plan both levels: where to cut the step into stages, which devices each gets, and how each is sharded.

    units -> estimates of each unit on each submesh -> partition -> finalists -> every stage planned -> simulated

1. Every kind of unit is planned alone on every shape of submesh, several times: freely, and with a price on memory, so
   that there are leaner plans where all units together would not fit. Equal units are planned once (*asked* and
   *solved* count it).
2. Dynamic programming over units and submeshes (:mod:`autopar.planner.stages.partition`) takes these for what the units
   of a stage cost together, and gives finalists and a bound.
3. Finalists are simulated task by task, with what stages send each other on the links that lie between them.
4. The stages of the best are planned as wholes, equal ones once, memory being as dear as it must be for the
   micro-batches in flight to fit, and simulated again. The fastest becomes the plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from autopar.cost import transfer_s
from autopar.errors import ClusterError, InfeasibleError, OptionError, SolverError
from autopar.ir import Step
from autopar.mesh import Cluster, Submesh, link_between, place
from autopar.partition import StageSection
from autopar.plan import Certificate, PipelineRunnerUp, PlanFacts, StageFacts
from autopar.planner.options import Options
from autopar.planner.search import plan_step
from autopar.planner.stages.cost import Partition, Span, StageCost
from autopar.planner.stages.estimate import Estimate, Sums, estimate, together
from autopar.planner.stages.partition import even_partition, partition
from autopar.planner.stages.problem import StagedProblem
from autopar.schedule import Kind, Schedule, Task, in_flight, in_flight_bound, make_schedule
from autopar.simulate import Timeline, simulate_schedule

Progress = Callable[[str], None]

_FILL = {"gpipe": 1.0, "1f1b": 1.0, "zb-h1": 1 / 3}
_FINALISTS = 6
_PLANNED = 2
_HALVES = 8  # so many devices are tried as two halves, too
_THRIFT = (0.0, 0.1, 1.0)  # what the memory of a device is worth, in terms of the step's time
_EASY = (0.7, 1.0)  # of the memory: units that need no more are not planned more thriftily
_UNIT_TIME_S = 3.0
_UNIT_GAP = 0.05  # of a unit alone: what its neighbours make of it differs by more


@dataclass
class Counts:
    """How many stage plans were asked for, and how many integer programs that took."""

    asked: int = 0
    solved: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How a stage is computed: how dear memory was when its units were planned, and whether with rematerialisation."""

    thrift: int
    remat: bool


@dataclass(frozen=True)
class Candidate:
    """A partition with its schedule, simulated.

    Attributes:
      spans: its stages.
      submeshes: their shapes.
      devices: their device ids.
      schedule: the order of tasks.
      estimates: of each stage.
      timeline: simulated.
      once_s: of the slowest stage.
    """

    spans: tuple[Span, ...]
    submeshes: tuple[Submesh, ...]
    devices: tuple[range, ...]
    schedule: Schedule
    estimates: tuple[Estimate, ...]
    timeline: Timeline
    once_s: float

    @property
    def step_s(self) -> float:
        """Predicted seconds per step."""
        return self.timeline.step_s + self.once_s

    @property
    def peaks(self) -> tuple[int, ...]:
        """Peak bytes of a device of each worker."""
        held = in_flight(self.schedule)
        peaks = [0] * len(self.schedule.workers)
        for s, e in enumerate(self.estimates):
            peaks[self.schedule.worker_of[s]] += e.peak_with(held[s])
        return tuple(peaks)


def plan_stages(
    problem: StagedProblem, cluster: Cluster, options: Options, progress: Progress = lambda _: None
) -> PlanFacts:
    """The best plan of several stages.

    Args:
      problem: the step, in its micro-batches.
      cluster: the machine.
      options: ``stages`` or ``max_stages``, ``schedule``, and how to plan each stage.
      progress: called with a line of text as the search goes on.

    Raises:
      OptionError: there are fewer units or devices than stages asked for.
      InfeasibleError: no cut fits into memory.
    """
    return _Search(problem, cluster, options, progress).run()


@dataclass
class _Search:
    problem: StagedProblem
    cluster: Cluster
    options: Options
    progress: Progress
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.units = self.problem.units
        self.microbatches = self.problem.microbatches
        self.shapes = self.cluster.submeshes(powers=True)
        memory_bytes = self.options.memory_bytes or self.cluster.device.memory_bytes
        self.memory_bytes = memory_bytes / self.options.stages_per_worker
        self.lock = threading.Lock()
        self.alone: dict[int, tuple[Step, StageSection]] = {}
        self.known: dict[tuple[tuple[str, int], int], Estimate | None] = {}
        self.sums: dict[tuple[int, int], Sums] = {}
        remats = {"none": (False,), "full": (True,), "auto": (False, True)}[self.options.remat]
        self.ways = tuple(Way(thrift, remat) for remat in remats for thrift in range(len(_THRIFT)))
        self.planned: dict[tuple[str, int, int], Estimate | None] = {}

    # 1. units

    def survey(self) -> None:
        """Plan every kind of unit on every shape, two at a time: while one is being solved, another is built."""
        wanted: dict[tuple[str, int], tuple[int, int]] = {
            self._key(i, shape): (i, shape) for shape in range(len(self.shapes)) for i in range(len(self.units))
        }
        with ThreadPoolExecutor(max_workers=2) as pool:
            for thrift in range(len(_THRIFT)):
                asked = [(index, shape, thrift) for index, shape in wanted.values()]
                found = list(pool.map(self._planned_unit, *zip(*asked, strict=True)))
                self.known.update(((key, thrift), e) for key, e in zip(wanted, found, strict=True))

    def unit(self, index: int, shape: int, thrift: int) -> Estimate | None:
        """A unit alone on a submesh, memory being dear to this degree."""
        self.counts.asked += 1
        return self.known[self._key(index, shape), thrift]

    def _key(self, index: int, shape: int) -> tuple[str, int]:
        return f"{self.units[index].like}{index == 0}{index == len(self.units) - 1}", shape

    def _planned_unit(self, index: int, shape: int, thrift: int) -> Estimate | None:
        if thrift and not self._crowded(shape, thrift - 1):
            return self.known[self._key(index, shape), thrift - 1]
        price = _THRIFT[thrift] * self._worth_s_per_gib(shape) if thrift else 0.0
        step, info = self._alone(index)
        options = dataclasses.replace(
            self.options, memory_bytes=math.inf, memory_price=price, mip_gap=_UNIT_GAP, time_limit_s=_UNIT_TIME_S,
            tie_above=0, group_above=0,
        )  # fmt: skip
        return self._cheapest(step, info, self.shapes[shape], options, likely_meshes(self.shapes[shape]))

    def _alone(self, index: int) -> tuple[Step, StageSection]:
        """A unit as a stage of its own, between one before and one after."""
        with self.lock:
            if index not in self.alone:
                begins = [u.begin for u in self.units]
                cut = sorted({0, begins[index], *begins[index + 1 : index + 2]})
                self.alone[index] = self.problem.stage(cut, cut.index(begins[index]))
            return self.alone[index]

    def _crowded(self, shape: int, thrift: int) -> bool:
        """Whether units so planned may not fit, as if all were spread evenly over submeshes of one shape."""
        units = [e for i in range(len(self.units)) if (e := self.known[self._key(i, shape), thrift]) is not None]
        stages = self.cluster.devices * self.options.stages_per_worker / self.shapes[shape].devices
        remat = any(way.remat for way in self.ways)
        kept = sum(e.joint_bytes if remat else e.residual_bytes for e in units) / stages
        held = sum(e.static_bytes for e in units) / stages + min(stages, self.microbatches) * kept
        held += max((e.passing_bytes + e.residual_bytes for e in units), default=0)
        return self.shapes[shape].devices > 1 and held > _EASY[thrift] * self.memory_bytes

    def _worth_s_per_gib(self, shape: int) -> float:
        """The time of a step by the memory of a device, as if all units were spread over submeshes of one shape."""
        units = [e for i in range(len(self.units)) if (e := self.known[self._key(i, shape), 0]) is not None]
        stages = self.cluster.devices * self.options.stages_per_worker / self.shapes[shape].devices
        return sum(e.plan.step_s for e in units) / stages / (self.memory_bytes / 2**30)

    def _cheapest(
        self, step: Step, info: StageSection, shape: Submesh, options: Options, meshes: Sequence[tuple[int, ...]]
    ) -> Estimate | None:
        """The plan of a stage that costs least in time, and in memory if that has a price; None if there is none."""
        part = self.cluster.part(shape)
        found = []
        for mesh in meshes if options.mesh is None else (options.mesh,):
            self.counts.solved += 1
            with contextlib.suppress(InfeasibleError, SolverError):
                facts = plan_step(step, part, dataclasses.replace(options, mesh=mesh), last_resort=False)
                found.append(estimate(step, info, facts, self.microbatches, self.problem.joints))
        price = options.memory_price / 2**30
        return min(found, key=lambda e: e.plan.step_s + price * e.held_bytes, default=None)

    def table(self, shape: int, thrift: int) -> Sums:
        """Running sums over all units on a submesh, so that any stage is a look-up."""
        if (shape, thrift) not in self.sums:
            self.sums[shape, thrift] = Sums.of([self.unit(i, shape, thrift) for i in range(len(self.units))])
        return self.sums[shape, thrift]

    def stage(self, first: int, stop: int, shape: int, in_flight: int) -> StageCost | None:
        """What units cost together on a submesh, in the fastest way that fits."""
        way = self.way(first, stop, shape, in_flight)
        return None if way is None else self.table(shape, way.thrift).cost(first, stop, remat=way.remat)

    def way(self, first: int, stop: int, shape: int, in_flight: int) -> Way | None:
        """The fastest way of computing units together that fits into memory."""
        best: tuple[float, Way] | None = None
        for way in self.ways:
            table = self.table(shape, way.thrift)
            if table.peak_bytes(first, stop, in_flight, remat=way.remat) <= self.memory_bytes:
                seconds = table.cost(first, stop, remat=way.remat).microbatch_s
                if best is None or seconds < best[0]:
                    best = (seconds, way)
        return None if best is None else best[1]

    # 2. partitions

    def run(self) -> PlanFacts:
        most = self._most_stages()
        if self.options.stages:
            self.shapes = tuple(shape for shape in self.shapes if self._even(shape, self.options.stages))
        self.survey()
        self.progress(f"{len(self.units)} units, up to {most} stages, {self.microbatches} micro-batches")
        partitions, bound_s = self._partitions(most)
        if not partitions:
            raise InfeasibleError(
                f"no cut of {self.problem.step.name} into {self.options.stages or f'up to {most}'} stages fits into "
                f"{self.memory_bytes / 2**30:.3g} GiB per device of cluster {self.cluster.name!r}. Use more devices, "
                "more micro-batches, or other stages."
            )
        self.progress(f"{self.counts.solved} programs solved for {self.counts.asked} unit plans asked")
        rough = [c for p in partitions for c in self._simulated_roughly(p)]
        rough.sort(key=lambda c: c.step_s)
        exact = [c for c in (self._exact(c) for c in rough[:_PLANNED]) if c is not None]
        for late in rough[_PLANNED:]:
            if not exact and (found := self._exact(late)) is not None:
                exact.append(found)
        if not exact:
            raise InfeasibleError(
                f"no cut of {self.problem.step.name} into stages fits into {self.memory_bytes / 2**30:.3g} GiB per "
                f"device of cluster {self.cluster.name!r} together with its micro-batches in flight. Use more devices, "
                "more micro-batches, or other stages."
            )
        best = min(exact, key=lambda c: c.step_s)
        self.progress(f"{best.step_s:.4g} s in {len(best.spans)} stages")
        return self._facts(best, [*exact, *rough], bound_s)

    def _most_stages(self) -> int:
        asked = self.options.stages or self.options.max_stages
        available = min(len(self.units), self.cluster.devices * self.options.stages_per_worker)
        if self.options.stages and self.options.stages > available:
            raise OptionError(
                f"{self.options.stages} stages were asked for, but {self.problem.step.name} has {len(self.units)} "
                f"units that may be a stage, and cluster {self.cluster.name!r} has {self.cluster.devices} devices. Ask "
                f"for at most {available} stages."
            )
        if self.options.stages and not any(self._even(shape, asked) for shape in self.shapes):
            possible = [n for n in range(1, available + 1) if any(self._even(shape, n) for shape in self.shapes)]
            raise OptionError(
                f"{asked} equal stages do not divide the {self.cluster.devices} devices of cluster "
                f"{self.cluster.name!r} into parts that a stage may have: some devices of one host, or whole hosts. "
                f"Ask for {', '.join(map(str, possible))} stages, or for max_stages={asked}, whose stages may differ."
            )
        return min(asked, available)

    def _even(self, shape: Submesh, stages: int) -> bool:
        """Whether a shape of submesh is one part of so many."""
        return shape.devices * stages == self.cluster.devices * self.options.stages_per_worker

    def _partitions(self, most: int) -> tuple[list[Partition], float]:
        """Finalists of all schedules and numbers of stages allowed, and the least that any can take."""

        def cost(first: int, stop: int, shape: int, after: int) -> StageCost | None:
            return self.stage(first, stop, shape, min(after, self.microbatches))

        exact = self.options.stages
        if exact is not None:
            devices = self.cluster.devices * self.options.stages_per_worker  # as if every stage had its own
            even = even_partition(len(self.units), self.shapes, devices, cost, self.microbatches, exact)
            return ([even], even.step_s) if even is not None else ([], 0.0)
        fill = _FILL.get(self.options.schedule, 1.0)
        arguments = (len(self.units), self.shapes, self.cluster.devices, cost, self.microbatches)
        finalists = partition(*arguments, max_stages=most, fill=fill, idle=True, keep=_FINALISTS)
        return (list(finalists.partitions), finalists.bound_s) if finalists is not None else ([], 0.0)

    # 3. finalists

    def _simulated_roughly(self, cut: Partition) -> list[Candidate]:
        """A partition with the estimates of its units added up."""
        estimates = []
        for position, span in enumerate(cut.spans):
            held = min(len(cut.spans) - position, self.microbatches)
            way = self.way(span.first, span.stop, span.shape, held)
            assert way is not None, "the partition search asked for it"
            units = [self.unit(i, span.shape, way.thrift) for i in range(span.first, span.stop)]
            estimates.append(together([e for e in units if e is not None], remat=way.remat))
        found = self._simulated(cut.spans, tuple(estimates))
        return [] if found is None else [found]

    def _simulated(self, spans: Sequence[Span], estimates: Sequence[Estimate]) -> Candidate | None:
        workers = len(spans) // self.options.stages_per_worker
        schedule = make_schedule(self.options.schedule, len(spans), self.microbatches, workers)
        submeshes = tuple(self.shapes[s.shape] for s in spans)
        try:
            placed = place(self.cluster, submeshes[:workers])
        except ClusterError:
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
            link = link_between(self.cluster, devices[source], devices[target])
            e = estimates[source]
            nbytes = e.sends_bytes if target > source else e.returns_bytes
            return transfer_s(link, nbytes / min(len(devices[source]), len(devices[target])))

        timeline = simulate_schedule(schedule, task_s, between_s)
        once_s = max(e.once_s for e in estimates)
        return Candidate(tuple(spans), submeshes, devices, schedule, tuple(estimates), timeline, once_s)

    # 4. whole stages

    def _exact(self, rough: Candidate) -> Candidate | None:
        begins = [self.units[span.first].begin for span in rough.spans]
        held = in_flight_bound(rough.schedule)
        found = []
        for index, span in enumerate(rough.spans):
            way = self.way(span.first, span.stop, span.shape, held[index])
            whole = self._whole_stage(begins, index, span, held[index], way or self.ways[-1])
            if whole is None:
                return None
            found.append(whole)
        return self._simulated(rough.spans, found)

    def _whole_stage(self, begins: Sequence[int], index: int, span: Span, held: int, way: Way) -> Estimate | None:
        """The fastest plan of a whole stage that fits with the micro-batches in flight."""
        remats = sorted({w.remat for w in self.ways if w.remat >= way.remat})
        for thrift, remat in itertools.product(range(way.thrift, len(_THRIFT)), remats):
            planned = self._planned_stage(begins, index, span, thrift)
            whole = planned.rematerialised() if planned is not None and remat else planned
            if whole is not None and whole.peak_with(held) <= self.memory_bytes:
                return whole
        return None

    def _planned_stage(self, begins: Sequence[int], index: int, span: Span, thrift: int) -> Estimate | None:
        """A stage planned as a whole, memory being dear to a degree, on the meshes of its units; equal ones once."""
        key = (self.problem.like(begins, index), span.shape, thrift)
        self.counts.asked += 1
        if key not in self.planned:
            step, info = self.problem.stage(begins, index)
            price = _THRIFT[thrift] * self._worth_s_per_gib(span.shape) if thrift else 0.0
            units = [self.unit(i, span.shape, thrift) for i in range(span.first, span.stop)]
            meshes = dict.fromkeys(e.plan.mesh_shape for e in units if e is not None)
            options = dataclasses.replace(self.options, memory_bytes=math.inf, memory_price=price)
            self.planned[key] = self._cheapest(step, info, self.shapes[span.shape], options, tuple(meshes))
        return self.planned[key]

    # the plan

    def _facts(self, best: Candidate, others: Sequence[Candidate], bound_s: float) -> PlanFacts:
        held = in_flight(best.schedule)
        stages = []
        for s, (span, devices, e) in enumerate(zip(best.spans, best.devices, best.estimates, strict=True)):
            begin = self.units[span.first].begin
            stages.append(
                StageFacts(
                    e.plan, begin, (span.first, span.stop), (devices.start, devices.stop), e.forward_s, e.backward_s,
                    e.weight_s, e.once_s, held[s], e.kept_bytes, e.sends_bytes, e.returns_bytes, e.remat,
                    e.waiting_bytes,
                )
            )  # fmt: skip
        step = self.problem.step
        fullest = max(range(len(stages)), key=lambda s: best.estimates[s].peak_with(held[s]))
        memory = dict(best.estimates[fullest].plan.memory)
        memory["micro-batches in flight"] = (held[fullest] - 1) * best.estimates[fullest].kept_bytes
        weights = [len(d) for d in best.devices]
        compute = sum(w * e.plan.compute_s for w, e in zip(weights, best.estimates, strict=True)) / sum(weights)
        talk = sum(w * e.plan.communication_s for w, e in zip(weights, best.estimates, strict=True)) / sum(weights)
        plans = [e.plan for e in best.estimates]
        phases = ("forward", "backward", "update")
        return PlanFacts(
            name=step.name,
            strategy=self.options.strategy,
            fingerprint=step.graph.fingerprint,
            cluster=self.cluster.to_dict(),
            mesh=(),
            arguments=(),
            results=(),
            ops={},
            layouts={},
            moves={},
            remade={},
            step_s=best.step_s,
            compute_s=compute,
            communication_s=talk,
            peak_bytes=max(best.peaks),
            memory=memory,
            collectives=tuple(itertools.chain.from_iterable(p.collectives for p in plans)),
            certificate=Certificate(
                status="stages: " + ", ".join(sorted({p.certificate.status for p in plans})),
                objective_s=best.step_s,
                bound_s=min(bound_s, best.step_s),
                gap=max(p.certificate.gap for p in plans),
                solver=plans[0].certificate.solver,
                variables=sum(p.certificate.variables for p in plans),
                constraints=sum(p.certificate.constraints for p in plans),
                build_s=sum(p.certificate.build_s for p in plans),
                solve_s=sum(p.certificate.solve_s for p in plans),
            ),
            warnings=tuple(dict.fromkeys(w for p in plans for w in p.warnings)),
            microbatches=self.microbatches,
            per_microbatch=self.options.per_microbatch,
            phase_s={p: sum(plan.phase_s[p] for plan in plans) for p in phases},
            schedule=best.schedule.name,
            stages=tuple(stages),
            idle_s=max(best.step_s - compute - talk, 0.0),
            pipeline_bound_s=bound_s,
            other_pipelines=tuple(_runners_up(best, others))[:_FINALISTS],
        )


def likely_meshes(shape: Submesh) -> tuple[tuple[int, ...], ...]:
    """Logical meshes worth trying on a submesh: hosts by devices; within a host, one axis, or two halves.

    >>> likely_meshes(Submesh((8, 2))), likely_meshes(Submesh((8, 1))), likely_meshes(Submesh((1, 1)))
    (((2, 8),), ((8,), (2, 4)), ((1,),))
    """
    sizes = tuple(n for n in reversed(shape.sizes) if n > 1)
    if len(sizes) > 1:
        return (sizes,)
    n = shape.devices
    return ((n,), (2, n // 2)) if n >= _HALVES and n % 2 == 0 else ((n,),)


def _runners_up(best: Candidate, others: Sequence[Candidate]) -> list[PipelineRunnerUp]:
    """Each cut once, as it was planned last, the fastest first; ``others`` are sorted by how exactly they are known."""
    known: dict[tuple[object, ...], Candidate] = {}
    for found in others:
        known.setdefault((found.spans, found.schedule.name), found)
    known.pop((best.spans, best.schedule.name), None)
    return sorted(map(_runner_up, known.values()), key=lambda r: r.step_s)


def _runner_up(found: Candidate) -> PipelineRunnerUp:
    stages = tuple((span.stop - span.first, len(d)) for span, d in zip(found.spans, found.devices, strict=True))
    return PipelineRunnerUp(stages, found.schedule.name, found.schedule.microbatches, found.step_s, max(found.peaks))
