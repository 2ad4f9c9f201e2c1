"""From a step cut into stages, each planned, to the pipeline that a runtime runs."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.ir import Step
from autopar.lower.stage_programs import StagePrograms
from autopar.partition import Staging, Timing
from autopar.schedule import Feed, Fetch, Keep, Pipeline, Schedule, Transfer


def assemble(
    step: Step, timing: Timing, staging: Staging, schedule: Schedule, programs: Sequence[StagePrograms]
) -> Pipeline:
    """Join lowered stages to a pipeline.

    Args:
      step: the user's step.
      timing, staging: how it was cut.
      schedule: the order of tasks.
      programs: every stage's programs.
    """
    graph = step.graph
    number = {v: i for i, v in reversed(list(enumerate(graph.inputs)))}
    dims = {graph.inputs[i]: dim for i, dim in timing.batch.items()}
    successor = dict(step.state)
    feeds: list[Feed] = []
    keeps: list[Keep] = []
    fetches: list[Fetch] = []
    sent: dict[tuple[int, int], str] = {}  # (value, stage) -> the buffer that holds it whole
    for info in staging.stages:
        s, leaves = info.index, len(info.state)
        buffers = programs[s].stage.buffers
        keeps += [Keep(i, successor[i], s, f"state{i}") for i in info.state]
        feeds += [Feed(number[v], s, f"feed{v}", None) for v in info.feeds if f"feed{v}" in buffers]
        feeds += [
            Feed(number[v], s, f"part{v}", dims[v])
            for v in info.section.parts
            if v in dims and f"part{v}" in buffers
        ]  # fmt: skip
        out = {v: f"out{k}" for k, v in enumerate(info.section.wholes_out) if k >= leaves}
        sent.update(((v, s), name) for v, name in out.items())
    for result, s in sorted(staging.results.items()):
        fetches.append(Fetch(result, s, sent[graph.outputs[result], s]))
    transfers = [
        Transfer(c.source, f"sent{c.value}", c.target, f"part{c.value}")
        if c.part
        else Transfer(c.source, sent[c.value, c.source], c.target, f"got{c.value}")
        for c in staging.crossings
    ]
    transfers = [t for t in transfers if t.target_buffer in programs[t.target].stage.buffers]
    stages = tuple(p.stage for p in programs)
    return Pipeline(step.name, schedule, stages, tuple(transfers), tuple(feeds), tuple(keeps), tuple(fetches))
