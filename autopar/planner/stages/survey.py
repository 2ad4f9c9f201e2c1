"""Plan every kind of unit alone on every shape of submesh: what any stage costs is then a look-up.

Equal units are planned once (*asked* and *solved* count it), and every program is built once and solved at several
prices of memory: freely, and more thriftily, so that there are lean plans where all units together would not fit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from autopar.errors import InfeasibleError
from autopar.mesh import Cluster, Submesh
from autopar.planner.one_mesh import prepare
from autopar.planner.options import Options
from autopar.planner.stages.cost import Span, StageCost
from autopar.planner.stages.estimate import Estimate, together
from autopar.planner.stages.hinted import StageHints
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.stages.section import Section, likely_meshes
from autopar.planner.stages.sharing import Alone, Shared, rounded
from autopar.planner.stages.sums import Sums
from autopar.schedule import Flight

_AT_ONCE = 3  # one being built, which takes Python's lock, and enough being solved to keep another core busy
_THRIFT = (0.0, 0.1, 1.0, 10.0)  # what the memory of a device is worth, in terms of the step's time
_EASY = (0.7, 0.9, 0.9)  # of the memory: units that need no more are not planned more thriftily
_UNIT_TIME_S = 15.0
_SETTLINGS = 5  # tries to find a mix of recomputation that fits once the programs are known
_UNIT_GAP = 0.05  # of a unit alone: what its neighbours make of it differs by more


@dataclass(frozen=True, slots=True)
class Way:
    """How a stage is computed.

    Attributes:
      thrift: how dear memory was when its units were planned.
      again_s: seconds of recomputation in each micro-batch.
    """

    thrift: int
    again_s: float


class Survey:
    """What units cost, alone and together.

    Args:
      problem: the step, in its micro-batches.
      cluster: the machine.
      options: how to plan each stage.
      shapes: of the submeshes that a stage may have.
      shared: what other searches with the same problem and options have planned, and will.
      hints: what they say of units.

    Attributes:
      memory_bytes: per shape, what one stage may take of a device.
      asked: how many plans of units and stages were asked for.
      solved: how many integer programs that took.
      refused: what a hint could not hold of.
    """

    def __init__(
        self,
        problem: StagedProblem,
        cluster: Cluster,
        options: Options,
        shapes: Sequence[Submesh],
        shared: Shared | None = None,
        hints: StageHints | None = None,
    ) -> None:
        self.problem = problem
        self.cluster = cluster
        self.options = options
        self.shapes = shapes
        self._shared = shared
        budgets = (options.memory_bytes or cluster.island(shape).device.memory_bytes for shape in shapes)
        self.memory_bytes = tuple(budget / options.stages_per_worker for budget in budgets)
        # Where what was computed again waits for weight programs, it is there all together.
        waits = options.schedule == "zb-h1"
        self._spares = tuple(not waits and not cluster.island(shape).device.reordered for shape in shapes)
        self.asked = self.solved = 0
        self.refused: InfeasibleError | None = None
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._alone: dict[int, Alone] = {} if shared is None else shared.alone
        self._units: dict[tuple[str, int, int], Estimate | None] = {}  # kind, shape, thrift
        self._tables: dict[tuple[int, int], Sums] = {}
        self._stages: dict[tuple[str, int, int], Estimate | None] = {}  # digest, shape, thrift
        self._sections: dict[tuple[str, int], Section] = {}  # digest, shape
        self._known: dict[tuple[tuple[str, ...], int, int], Estimate] = {}  # kinds, shape, in flight: planned as wholes
        last = len(problem.units) - 1
        self._hints = hints or StageHints({}, {}, ("",) * len(problem.units))
        marks = self._hints.marks
        self._kinds = [f"{unit.like}{i == 0}{i == last}{marks[i]}" for i, unit in enumerate(problem.units)]
        self._worth: dict[int, float] = {}  # island -> what a GiB is worth on it, seconds
        self._plan_units()

    # units

    def _plan_units(self) -> None:
        """Plan every kind of unit on every shape, several at a time: while one is being solved, another is built.

        An island's first shape tells what memory is worth; on the others each program is solved at two prices at once.
        """
        kinds = {kind: i for i, kind in enumerate(self._kinds)}
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def plan(shapes: Sequence[int], thrifts: tuple[int, ...]) -> None:
                asked = list(itertools.product(kinds.values(), shapes))
                found = pool.map(lambda where: self._planned_unit(where[0], where[1], thrifts), asked)
                for (index, shape), estimates in zip(asked, found, strict=True):
                    self._units.update(
                        ((self._kinds[index], shape, k), e) for k, e in zip(thrifts, estimates, strict=True)
                    )

            firsts = {shape.island: k for k, shape in reversed(list(enumerate(self.shapes)))}
            self._worth = dict.fromkeys(firsts, 0.0)
            plan(sorted(firsts.values()), (0,))
            self._worth = {island: self._worth_s_per_gib(k) for island, k in firsts.items()}
            plan([k for k in range(len(self.shapes)) if k not in firsts.values()], (0, 1))
            for thrift in range(1, len(_THRIFT)):
                crowded = [k for k in range(len(self.shapes)) if self._crowded(k, thrift - 1)]
                roomy = {shape.island for k, shape in enumerate(self.shapes) if k not in crowded and thrift > 1}
                wanted = [k for k in crowded if self.shapes[k].island not in roomy]
                plan([k for k in wanted if any((kind, k, thrift) not in self._units for kind in kinds)], (thrift,))
                for kind, k in itertools.product(kinds, range(len(self.shapes))):
                    self._units.setdefault((kind, k, thrift), self._units[kind, k, thrift - 1])

    def unit(self, index: int, shape: int, thrift: int) -> Estimate | None:
        """A unit alone on a submesh, memory being dear to this degree; None if there is no such plan."""
        with self._counting:
            self.asked += 1
        return self._units[self._kinds[index], shape, thrift]

    def sent_bytes(self, index: int, shape: int) -> tuple[int, int]:
        """What a unit sends for one micro-batch, over all devices: to what follows, and back to what precedes it."""
        found = self._units[self._kinds[index], shape, 0]
        return (found.sends_bytes, found.returns_bytes) if found is not None else (0, 0)

    def _planned_unit(self, index: int, shape: int, thrifts: tuple[int, ...]) -> list[Estimate | None]:
        options = dataclasses.replace(
            self.options, mip_gap=_UNIT_GAP, time_limit_s=_UNIT_TIME_S, tie_above=0, group_above=0
        )
        units, cluster = (index, index + 1), self.cluster.part(self.shapes[shape])

        def make() -> Section:
            step, info, prepared = self._unit_alone(index, options)
            return Section(self.problem, (step, info), units, cluster, options, prepared)

        section = (
            make() if self._shared is None else self._shared.section((self._kinds[index], cluster.fingerprint), make)
        )
        return self._cheapest(section, self.shapes[shape], likely_meshes(self.shapes[shape]), thrifts)

    def _unit_alone(self, index: int, options: Options) -> Alone:
        """A unit as a stage of its own, between one before and one after."""
        with self._lock:
            if index not in self._alone:
                begins = [u.begin for u in self.problem.units]
                cut = tuple(sorted({0, begins[index], *begins[index + 1 : index + 2]}))
                step, info = self.problem.stage(cut, cut.index(begins[index]))
                self._alone[index] = step, info, prepare(step, options)
            return self._alone[index]

    def _every(self, shape: int, thrift: int) -> list[Estimate]:
        found = (self._units[self._kinds[i], shape, thrift] for i in range(len(self.problem.units)))
        return [e for e in found if e is not None]

    def _stages_of(self, shape: int) -> float:
        """How many submeshes of one shape the cluster has, as if all its devices were such."""
        return self.cluster.devices * self.options.stages_per_worker / self.shapes[shape].devices

    def _worth_s_per_gib(self, shape: int) -> float:
        """The time of a step by the memory of a device, as if units were spread over submeshes of one shape."""
        seconds = sum(e.plan.step_s for e in self._every(shape, 0)) / self._stages_of(shape)
        return seconds / (self.memory_bytes[shape] / 2**30)

    def _crowded(self, shape: int, thrift: int) -> bool:
        """Whether units so planned may not fit, as if all were spread evenly over submeshes of one shape."""
        units, stages = self._every(shape, thrift), self._stages_of(shape)
        kept = sum(e.leanest_bytes for e in units) / stages
        held = sum(e.static_bytes for e in units) / stages + min(stages, self.problem.microbatches) * kept
        held += max((e.passing_bytes + e.residual_bytes for e in units), default=0)
        return held > _EASY[thrift] * self.memory_bytes[shape]

    def _cheapest(
        self, section: Section, shape: Submesh, meshes: Sequence[tuple[int, ...]], thrifts: tuple[int, ...]
    ) -> list[Estimate | None]:
        """For each degree of thrift, the plan that costs least in time and memory; None if there is none."""
        if self.options.mesh is not None:
            meshes = (self.options.mesh,)
        with self._counting:
            self.solved += len(meshes) * len(thrifts)
        prices = [_THRIFT[k] * self._worth[shape.island] for k in thrifts]
        found = section.cheapest(meshes, prices if self._shared is None else [rounded(p) for p in prices])
        self.refused = self.refused or section.refused
        return found

    # units together

    def table(self, shape: int, thrift: int) -> Sums:
        """Running sums over all units on a submesh."""
        if (shape, thrift) not in self._tables:
            units = [self.unit(i, shape, thrift) for i in range(len(self.problem.units))]
            self._tables[shape, thrift] = Sums.of(units)
        return self._tables[shape, thrift]

    def stage(self, first: int, stop: int, shape: int, in_flight: int) -> StageCost | None:
        """What units cost together on a submesh: what was found of them as a whole, or else their sums."""
        if (known := self._found(first, stop, shape, in_flight)) is not None:
            return StageCost(known.microbatch_s, known.once_s)
        way = self.way(first, stop, shape, in_flight)
        return None if way is None else self.table(shape, way.thrift).cost(first, stop, way.again_s)

    def way(self, first: int, stop: int, shape: int, in_flight: int) -> Way | None:
        """The fastest way of computing units together that fits into memory."""
        best, found = math.inf, None
        for thrift in range(len(_THRIFT)):
            table = self.table(shape, thrift)
            again_s = table.again_s(first, stop, in_flight, self.memory_bytes[shape], spares=self._spares[shape])
            seconds = table.microbatch_s[stop] - table.microbatch_s[first] + again_s
            if seconds < best:
                best, found = seconds, Way(thrift, again_s)
        return found

    def rough(self, span: Span, flights: Sequence[Flight]) -> Estimate | None:
        """The fastest stage that fits: as it was found as a whole, or else as far as its units tell."""
        most = max(f.all for f in flights)
        known = self._found(span.first, span.stop, span.shape, most)
        if known is not None and known.peak_with(flights) <= self.memory_bytes[span.shape]:
            return known
        way = self.way(span.first, span.stop, span.shape, most)
        if way is None:
            return None
        units = [self.unit(i, span.shape, way.thrift) for i in range(span.first, span.stop)]
        return together([e for e in units if e is not None]).fitted(flights, self.memory_bytes[span.shape])

    # whole stages

    def wholes(
        self,
        begins: tuple[int, ...],
        spans: Sequence[Span],
        flights: Sequence[Sequence[Flight]],
        *,
        split_backward: bool,
    ) -> list[Estimate] | None:
        """The stages of a pipeline as wholes, several at a time: while one is being solved, another is built.

        Args:
          begins: where stages begin, as positions among the forward ops.
          spans: their units and shapes.
          flights: what each may hold besides the micro-batch that it computes.
          split_backward: whether gradients of parameters have a task of their own.

        Returns:
          For each the fastest plan that fits; None if one stage has none.
        """

        def plan(k: int) -> Estimate | None:
            return self._whole(begins, k, spans[k], flights[k], split_backward=split_backward)

        unlike = {(self._like(begins, k, spans[k]), spans[k].shape): k for k in reversed(range(len(spans)))}.values()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            first = dict(zip(unlike, pool.map(plan, unlike), strict=True))
        found = []
        for k in range(len(spans)):  # what equals another is known by now
            whole = first[k] if k in first else plan(k)
            if whole is None:
                return None
            found.append(whole)
        return found

    def _whole(
        self, begins: tuple[int, ...], index: int, span: Span, flights: Sequence[Flight], *, split_backward: bool
    ) -> Estimate | None:
        """The fastest plan of a stage that fits. Memory is as dear as it was for the units, or dearer if it must be."""
        most = max(f.all for f in flights)
        memory_bytes = self.memory_bytes[span.shape]
        way = self.way(span.first, span.stop, span.shape, most) or Way(len(_THRIFT) - 1, math.inf)
        fitting: list[Estimate] = []
        for thrift in range(way.thrift, len(_THRIFT)):
            planned = self._planned_stage(begins, index, span, thrift)
            fitted = _settled(planned, flights, memory_bytes, split_backward) if planned is not None else None
            fitting += [fitted] if fitted is not None else []
            if fitted is not None and planned is not None and (way.again_s or fitted.remat == planned.remat):
                break  # leaner plans are slower
        best = min(fitting, key=lambda e: e.microbatch_s, default=None)
        if best is not None:
            self._known[tuple(self._kinds[span.first : span.stop]), span.shape, most] = best
        return best

    def _found(self, first: int, stop: int, shape: int, in_flight: int) -> Estimate | None:
        """A stage of such units that was planned as a whole, holding so many micro-batches."""
        return self._known.get((tuple(self._kinds[first:stop]), shape, in_flight)) if self._known else None

    def _like(self, begins: tuple[int, ...], index: int, span: Span) -> str:
        """Stages of equal digest are planned alike; hints may tell equal ones apart."""
        return self.problem.like(begins, index) + self._hints.mark(span.first, span.stop)

    def _planned_stage(self, begins: tuple[int, ...], index: int, span: Span, thrift: int) -> Estimate | None:
        """A stage planned on the meshes of its units; equal ones once."""
        key = (self._like(begins, index, span), span.shape, thrift)
        with self._counting:
            self.asked += 1
        if key not in self._stages:
            units = [self.unit(i, span.shape, thrift) for i in range(span.first, span.stop)]
            meshes = dict.fromkeys(e.plan.mesh_shape for e in units if e is not None)
            shape, asked = self.shapes[span.shape], self._hints.mesh(span.first, span.stop)
            meshes = {asked: None} if asked is not None else meshes
            if key[:2] not in self._sections:
                stage, part = self.problem.stage(begins, index), self.cluster.part(shape)
                self._sections[key[:2]] = Section(self.problem, stage, (span.first, span.stop), part, self.options)
            (self._stages[key],) = self._cheapest(self._sections[key[:2]], shape, tuple(meshes), (thrift,))
        return self._stages[key]


def _settled(
    planned: Estimate, flights: Sequence[Flight], memory_bytes: float, split_backward: bool
) -> Estimate | None:
    """A planned stage with as little recomputation as fits once its programs are known; None if it cannot fit."""
    room = memory_bytes
    for _ in range(_SETTLINGS):
        fitted = planned.fitted(flights, room)
        if fitted is None:
            return None
        found = fitted.settled(split_backward=split_backward)
        over = found.peak_with(flights) - memory_bytes
        if over <= 0:
            return found
        room -= over
    return None


__all__ = ["Survey"]
