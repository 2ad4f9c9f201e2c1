"""When each task of a planned pipeline runs, from the plan's own figures."""

from __future__ import annotations

from autopar.cost import transfer_s
from autopar.mesh import Cluster, link_between
from autopar.plan import PlanFacts, StageFacts
from autopar.schedule import Kind, Task, make_schedule
from autopar.simulate.timeline import Timeline, simulate_schedule


def simulate_plan(plan: PlanFacts) -> Timeline:
    """The timeline of all micro-batches, as predicted; what runs once per step follows it.

    Args:
      plan: with stages. Those on the same devices take turns there, as one worker.

    Raises:
      OptionError: the plan's schedule is not known, or has other workers.
      ClusterError: its stages' devices overlap in part, or are not on its cluster.
    """
    workers = len({stage.devices for stage in plan.stages})
    schedule = make_schedule(plan.schedule, len(plan.stages), plan.microbatches, workers)
    cluster = Cluster.from_dict(plan.cluster)
    splits = Kind.WEIGHT in schedule.kinds

    def between_s(source: int, target: int) -> float:
        a, b = plan.stages[source], plan.stages[target]
        link = link_between(cluster, range(*a.devices), range(*b.devices))
        nbytes = a.sends_bytes if target > source else a.returns_bytes
        return transfer_s(link, nbytes / min(a.plan.devices, b.plan.devices))

    return simulate_schedule(schedule, lambda task: _task_s(plan.stages[task.stage], task, splits), between_s)


def _task_s(stage: StageFacts, task: Task, splits: bool) -> float:
    """Predicted seconds of a task; ``splits`` where the schedule has tasks for the gradients of parameters alone."""
    if task.kind == Kind.FORWARD:
        return stage.forward_s
    if task.kind == Kind.WEIGHT:
        return stage.weight_s
    return max(stage.backward_s - (stage.weight_s if splits else 0.0), 0.0)
