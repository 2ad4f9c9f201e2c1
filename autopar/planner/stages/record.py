"""What is written down of a search for stages: the plan, and the cuts that came close."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.ir import NONE, Step, product_flops
from autopar.mesh import Cluster, Submesh
from autopar.partition import StageSection
from autopar.plan import Certificate, PipelineRunnerUp, PlanFacts, StageFacts
from autopar.planner.options import Options
from autopar.planner.stages.cost import Span
from autopar.planner.stages.estimate import Estimate
from autopar.planner.stages.problem import StagedProblem
from autopar.schedule import Kind, Schedule, flights, in_flight
from autopar.simulate import Timeline

_RUNNERS_UP = 6


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
        held = flights(self.schedule)
        peaks = [0] * len(self.schedule.workers)
        for s, e in enumerate(self.estimates):
            peaks[self.schedule.worker_of[s]] += e.peak_with(held[s])
        return tuple(peaks)


def write_stages(
    problem: StagedProblem,
    cluster: Cluster,
    options: Options,
    best: Candidate,
    others: Sequence[Candidate],
    bound_s: float,
) -> PlanFacts:
    """The plan of stages.

    Args:
      problem: the step, in its micro-batches.
      cluster: the machine.
      options: what was asked for.
      best: the plan.
      others: runners-up, those planned as wholes before those only estimated.
      bound_s: no cut takes less, by the estimates of its units.
    """
    held, most = flights(best.schedule), in_flight(best.schedule)
    staging = problem.staging(tuple(problem.units[span.first].begin for span in best.spans))
    stages = []
    for s, (span, devices, e) in enumerate(zip(best.spans, best.devices, best.estimates, strict=True)):
        begin = problem.units[span.first].begin
        flight = max(held[s], key=e.besides)
        own = _named(e.plan, problem.step, staging.stages[s])
        stages.append(
            StageFacts(
                own, begin, (span.first, span.stop), (devices.start, devices.stop), e.forward_s, e.backward_s,
                e.weight_s, e.once_s, most[s], e.kept_bytes, e.sends_bytes, e.returns_bytes,
                e.remat if any(word != NONE for word in e.remat) else (), e.waiting_bytes, e.again, flight.pending,
                e.pending_bytes, e.peak_bytes - e.waiting_bytes - e.plan.peak_bytes, e.spared_bytes, e.memory_price,
            )
        )  # fmt: skip
    step = problem.step
    fullest = max(range(len(stages)), key=lambda s: best.estimates[s].peak_with(held[s]))
    memory = dict(best.estimates[fullest].plan.memory)
    memory["activation"] = memory.get("activation", 0) - stages[fullest].spared_bytes
    memory["micro-batches in flight"] = max(map(best.estimates[fullest].besides, held[fullest]))
    handed = stages[fullest].handed_bytes
    memory |= {"for weight programs": handed} if handed else {}
    weights = [len(d) for d in best.devices]
    again = [e.again_s * problem.microbatches for e in best.estimates]
    talk_again = [sum(c.seconds for c in e.again) for e in best.estimates]
    calls = [e.call_s * (1 + len(best.schedule.kinds) * problem.microbatches) for e in best.estimates]
    computes = [
        e.plan.compute_s + s - t + c for e, s, t, c in zip(best.estimates, again, talk_again, calls, strict=True)
    ]
    talks = [e.plan.communication_s + t for e, t in zip(best.estimates, talk_again, strict=True)]
    compute = sum(map(operator.mul, weights, computes)) / sum(weights)
    talk = sum(map(operator.mul, weights, talks)) / sum(weights)
    plans = [e.plan for e in best.estimates]
    phases = ("forward", "backward", "update")
    return PlanFacts(
        name=step.name,
        strategy=options.strategy,
        fingerprint=step.graph.fingerprint,
        cluster=cluster.to_dict(),
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
        collectives=tuple(itertools.chain.from_iterable(stage.collectives for stage in stages)),
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
        microbatches=problem.microbatches,
        per_microbatch=options.per_microbatch,
        phase_s={p: sum(plan.phase_s[p] for plan in plans) + (sum(again) if p == "backward" else 0.0) for p in phases},
        schedule=best.schedule.name,
        stages=tuple(stages),
        idle_s=max(best.step_s - compute - talk, 0.0),
        pipeline_bound_s=bound_s,
        other_pipelines=tuple(_runners_up(best, others))[:_RUNNERS_UP],
        flops=product_flops(step.graph),
        again_flops=sum(p.again_flops for p in plans) + _again_flops(best) * problem.microbatches,
    )


def _named(plan: PlanFacts, step: Step, info: StageSection) -> PlanFacts:
    """A stage's plan with the names of its own arguments: equal stages are planned once, with those of the first."""
    values = (*info.section.whole, *info.section.parts)
    names = [step.graph.values[v].name for v in values]
    own = [replace(a, name=name) for a, name in zip(plan.arguments, names, strict=False)]
    results = [replace(r, name=name) for r, name in zip(plan.results, names[: len(info.state)], strict=False)]
    return replace(
        plan,
        name=f"{step.name}, stage {info.index}",
        arguments=(*own, *plan.arguments[len(own) :]),
        results=(*results, *plan.results[len(results) :]),
    )


def _again_flops(best: Candidate) -> float:
    """FLOPs that the plan computes again, for one micro-batch."""
    splits = Kind.WEIGHT in best.schedule.kinds
    kept = [(e.keeping, e.remat) for e in best.estimates]
    return sum(k.programs(remat, split_backward=splits).again_flops for k, remat in kept if k is not None)


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


__all__ = ["Candidate", "write_stages"]
