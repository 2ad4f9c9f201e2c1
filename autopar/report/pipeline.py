"""What the page of a plan of several stages says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from autopar.ir import remat_text
from autopar.mesh import Cluster
from autopar.plan import PlanFacts, StageFacts
from autopar.report.arguments import argument_sections
from autopar.report.causes import causes
from autopar.report.common import (
    AMOUNTS,
    amounts,
    device_names,
    hint_sections,
    percent_text,
    slower_text,
    stage_devices,
    warning_sections,
    workers,
)
from autopar.report.drawing import drawing
from autopar.report.links import link_sections
from autopar.report.memory import stages_memory_section
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.words import pipeline_sentence, ranges_text, stages_text
from autopar.units import bytes_text, seconds_text

_STAGES = 12
_CAUSES = 8
_RUNNERS_UP = 3
_AGAIN = 3


def pipeline_page(plan: PlanFacts) -> Page:
    """The page of a plan with stages. Its length grows with their number up to a limit, not with their size."""
    cluster = Cluster.from_dict(plan.cluster)
    sections = [
        Section("Prediction", (Lines(_prediction(plan, cluster)),)),
        *hint_sections(plan),
        Section("Stages; seconds of one micro-batch, and once per step", (_stages(plan), Lines(_held(plan)))),
        *_drawing(plan),
        stages_memory_section(plan),
        *argument_sections(plan),
        _communication(plan),
        *link_sections(plan),
        *_runners_up(plan),
        *warning_sections(plan),
    ]
    title = f"{plan.name} on {cluster.name}, strategy {plan.strategy}"
    return Page(title, pipeline_sentence(plan), tuple(sections))


def fullest(plan: PlanFacts) -> str:
    """The stage whose devices hold most, or the stages, where several share devices."""
    return stages_text(_fullest(plan))


def _fullest(plan: PlanFacts) -> list[int]:
    return max(workers(plan), key=lambda stages: sum(plan.stages[s].peak_bytes for s in stages))


def _prediction(plan: PlanFacts, cluster: Cluster) -> tuple[str, ...]:
    device = stage_devices(plan)[_fullest(plan)[0]].memory_bytes
    share = (
        "" if math.isinf(device) else f", {percent_text(plan.peak_bytes / device)} of the device's {bytes_text(device)}"
    )
    found = [
        f"step    {seconds_text(plan.step_s)}: on the average device {seconds_text(plan.compute_s)} compute,",
        f"        {seconds_text(plan.communication_s)} communication, {seconds_text(plan.idle_s)} waiting "
        f"(bubble {percent_text(plan.idle_s / plan.step_s if plan.step_s else 0.0)})",
        f"memory  {bytes_text(plan.peak_bytes)} at the peak of {fullest(plan)}{share}",
    ]
    unused = cluster.devices - plan.devices
    if unused:
        found.append(f"idle    {unused} of the cluster's {cluster.devices} devices have no stage")
    return (*found, *_proof(plan))


def _proof(plan: PlanFacts) -> tuple[str, ...]:
    proofs = [stage.plan.certificate for stage in plan.stages]
    words = sorted({c.status for c in proofs})
    found = []
    if words == ["given"]:
        found.append("proof   none: this plan was given, not searched")
    else:
        gap = percent_text(max(c.gap for c in proofs))
        found.append(f"proof   every stage: {', '.join(words)}, within {gap} of its own bound")
    if 0 < plan.pipeline_bound_s <= plan.step_s and plan.other_pipelines:
        bound = seconds_text(plan.pipeline_bound_s)
        found.append(f"        no cut takes less than {bound}, by what its units cost one by one")
    return tuple(found)


def _stages(plan: PlanFacts) -> Table:
    splits = plan.schedule == "zb-h1"

    def row(s: int, stage: StageFacts) -> tuple[str, ...]:
        waited = max(stage.backward_s - (stage.weight_s if splits else 0.0), 0.0)
        tasks = (stage.forward_s, waited, *([stage.weight_s] if splits else []), stage.once_s)
        mesh = "x".join(map(str, stage.plan.mesh_shape))
        where = (range_text(stage.devices), *names[s : s + 1], mesh)
        return (str(s), range_text(stage.units), *where, *map(seconds_text, tasks))

    names = device_names(plan)
    words = ("stage", "units", "devices", *(("type",) if names else ()), "mesh")
    times = ("forward", "backward", *(["weights"] if splits else []), "once")
    shown, rest = head(tuple(enumerate(plan.stages)), _STAGES)
    return Table(
        (*map(Column, words), *(Column(t, right=True) for t in times)),
        tuple(row(s, stage) for s, stage in shown),
        f"and {len(rest)} more" if rest else "",
    )


def _held(plan: PlanFacts) -> tuple[str, ...]:
    """What micro-batches in flight mean to each stage: how many, what each keeps, what is sent, what runs again."""
    stages = plan.stages
    kept = _span_text([stage.residual_bytes for stage in stages])
    found = [f"holds  {_flights_text([stage.in_flight for stage in stages])}", f"keeps  {kept} on a device for each"]
    sends = [stage.sends_bytes for stage in stages if stage.sends_bytes]
    returns = [stage.returns_bytes for stage in stages if stage.returns_bytes]
    if sends:
        back = f", {_span_text(returns)} of gradients back" if returns else ""
        found.append(f"sends  {_span_text(sends)} of activations on per micro-batch{back}")
    again: dict[str, list[int]] = {}
    for s, stage in enumerate(stages):
        if remat_text(stage.remat):
            again.setdefault(remat_text(stage.remat), []).append(s)
    shown, rest = head([f"{stages_text(which)} {word}" for word, which in again.items()], _AGAIN)
    more = [f"{len(rest)} more ways"] if rest else []
    if again:
        found.append(f"again  {'; '.join((*shown, *more))}")
    return tuple(found)


def _flights_text(counts: Sequence[int]) -> str:
    """How many micro-batches stages hold.

    >>> _flights_text([4, 3, 2, 1]), _flights_text([8, 8])
    ('4, 3, 2, 1 micro-batches in flight, by stage', '8 micro-batches in flight')
    """
    if len(set(counts)) == 1:
        return f"{counts[0]} micro-batch{'es' if counts[0] > 1 else ''} in flight"
    words = ", ".join(map(str, counts)) if len(counts) <= _STAGES else f"{counts[0]} to {counts[-1]}"
    return f"{words} micro-batches in flight, by stage"


def _span_text(amounts: Sequence[int]) -> str:
    """Bytes from the least to the most.

    >>> _span_text([2048]), _span_text([1024, 3072])
    ('2 KiB', '1 KiB to 3 KiB')
    """
    least, most = bytes_text(min(amounts)), bytes_text(max(amounts))
    return least if least == most else f"{least} to {most}"


def range_text(span: tuple[int, int]) -> str:
    """A half-open range, both ends said.

    >>> range_text((0, 4)), range_text((3, 4))
    ('0-3', '3')
    """
    first, stop = span
    return f"{first}-{stop - 1}" if stop - first > 1 else str(first)


def _drawing(plan: PlanFacts) -> tuple[Section, ...]:
    rows = drawing(plan)
    if not rows:
        return ()
    return (Section("The step as predicted: Forward, Backward, Weights, Update, . waits", (Lines(rows),)),)


def _communication(plan: PlanFacts) -> Section:
    """Causes of all stages together: of each the stage that spends most on it."""
    shown, rest = head(causes(plan), _CAUSES)
    if not shown:
        return Section("Communication inside the stages", (Lines(("none",)),))
    somewhere = any(len(cause.by_stage) < len(plan.stages) for cause in shown)
    rows = tuple(
        (
            cause.phase,
            cause.kind,
            cause.use,
            *((ranges_text(sorted(cause.by_stage)),) if somewhere else ()),
            *amounts(cause.most),
        )
        for cause in shown
    )
    columns = (
        Column("phase"), Column("collective"), Column("for", narrowest=10),
        *((Column("stages", narrowest=6),) if somewhere else ()), *AMOUNTS,
    )  # fmt: skip
    more = f"and {len(rest)} more: {seconds_text(sum(cause.seconds for cause in rest))}" if rest else ""
    title = f"Communication in a step by cause, on a device{' of the busiest stage' if len(plan.stages) > 1 else ''}"
    return Section(title, (Table(columns, rows, more),))


def _runners_up(plan: PlanFacts) -> tuple[Section, ...]:
    others = plan.other_pipelines
    if not others:
        return ()
    shown, rest = head(others, _RUNNERS_UP)
    ours = (plan.schedule, plan.microbatches)
    unlike = any((r.schedule, r.microbatches) != ours for r in shown)
    rows = tuple(
        (
            cut_text(r.stages),
            *((f"{r.schedule}, {r.microbatches}",) if unlike else ()),
            seconds_text(r.step_s),
            slower_text(r.step_s, plan.step_s),
            bytes_text(r.peak_bytes),
        )
        for r in shown
    )
    columns = (
        Column("units on devices, by stage", narrowest=24), *((Column("schedule"),) if unlike else ()),
        *(Column(t, right=True) for t in ("step", "slower by", "fullest device")),
    )  # fmt: skip
    return (Section("Other cuts that were tried", (Table(columns, rows, f"and {len(rest)} more" if rest else ""),)),)


def cut_text(stages: Sequence[tuple[int, int]]) -> str:
    """A cut in words: units on devices of each stage, equal neighbours said once.

    >>> cut_text([(4, 2), (2, 1), (2, 1)])
    '4 on 2, 2x (2 on 1)'
    """
    runs = [(f"{units} on {devices}", len(list(same))) for (units, devices), same in itertools.groupby(stages)]
    return ", ".join(word if n == 1 else f"{n}x ({word})" for word, n in runs)
