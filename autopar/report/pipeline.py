"""What the page of a plan of several stages says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from autopar.ir import remat_text
from autopar.mesh import Cluster, Device
from autopar.plan import CollectiveRecord, PipelineRunnerUp, PlanFacts, StageFacts
from autopar.report.common import (
    AMOUNTS,
    amounts,
    cause_text,
    device_names,
    hint_sections,
    memory_section,
    percent_text,
    slower_text,
    stage_devices,
    summed,
    warning_sections,
)
from autopar.report.drawing import drawing
from autopar.report.links import link_sections
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.words import pipeline_sentence
from autopar.units import bytes_text, seconds_text

_STAGES = 24
_CAUSES = 10
_RUNNERS_UP = 5


def pipeline_page(plan: PlanFacts) -> Page:
    """The page of a plan with stages. Its length grows with their number up to a limit, not with their size."""
    cluster = Cluster.from_dict(plan.cluster)
    sections = [
        Section("Prediction", (Lines(_prediction(plan, cluster)),)),
        *hint_sections(plan),
        Section("Stages; seconds of one micro-batch, and once per step", (_stages(plan),)),
        Section("Micro-batches: how many a stage holds, what it keeps and sends for each", (_held(plan),)),
        *_drawing(plan),
        _communication(plan),
        *link_sections(plan),
        memory_section(plan, f"on each device of {fullest(plan)}, the fullest"),
        *_runners_up(plan),
        *warning_sections(plan),
    ]
    title = f"{plan.name} on {cluster.name}, strategy {plan.strategy}"
    return Page(title, pipeline_sentence(plan), tuple(sections))


def fullest(plan: PlanFacts) -> str:
    """The stage whose devices hold most, or the stages, where several share devices."""
    found = _fullest(plan)
    return f"stage{'s' if len(found) > 1 else ''} {' and '.join(map(str, found))}"


def _fullest(plan: PlanFacts) -> list[int]:
    held: dict[tuple[int, int], list[int]] = {}
    for s, stage in enumerate(plan.stages):
        held.setdefault(stage.devices, []).append(s)
    return max(held.values(), key=lambda stages: sum(plan.stages[s].peak_bytes for s in stages))


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


def _held(plan: PlanFacts) -> Table:
    remade = any(map(_again, plan.stages))
    devices = stage_devices(plan) if device_names(plan) else ()
    shown, rest = head(tuple(enumerate(plan.stages)), _STAGES)
    rows = tuple(
        (
            str(s),
            bytes_text(stage.peak_bytes),
            *(_share_text(stage.peak_bytes, device) for device in devices[s : s + 1]),
            str(stage.in_flight),
            *(bytes_text(n) if n else "-" for n in (stage.residual_bytes, stage.sends_bytes, stage.returns_bytes)),
            *((_again(stage) or "-",) if remade else ()),
        )
        for s, stage in shown
    )
    titles = ("peak", *(("of its device",) if devices else ()), "in flight", "each keeps", "sends on", "sends back")
    columns = (
        Column("stage"),
        *(Column(t, right=True) for t in titles),
        *((Column("remat", narrowest=14),) if remade else ()),
    )
    return Table(columns, rows, f"and {len(rest)} more" if rest else "")


def _share_text(peak_bytes: int, device: Device) -> str:
    return "-" if math.isinf(device.memory_bytes) else percent_text(peak_bytes / device.memory_bytes)


def _again(stage: StageFacts) -> str:
    return remat_text(stage.remat)


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
    rows = []
    for s, stage in enumerate(plan.stages):
        several = sum(a.size > 1 for a in stage.plan.mesh) > 1
        for again, records in ((False, stage.plan.collectives), (True, stage.again)):
            for (phase, kind, why, axes), found in summed(records, _cause):
                seconds = sum(c.seconds for c in found)
                cause = f"{why} over {axes}" if several else why
                rows.append((seconds, (str(s), "again" if again else phase, kind, cause, *amounts(found))))
    if not rows:
        return Section("Communication inside the stages", (Lines(("none",)),))
    rows.sort(key=lambda row: -row[0])
    shown, rest = head(rows, _CAUSES)
    columns = (Column("stage"), Column("phase"), Column("collective"), Column("why", narrowest=14), *AMOUNTS)
    more = f"and {len(rest)} more: {seconds_text(sum(seconds for seconds, _ in rest))}" if rest else ""
    table = Table(columns, tuple(row for _, row in shown), more)
    return Section("Communication inside the stages, per device and step, longest first", (table,))


def _cause(c: CollectiveRecord) -> tuple[str, ...]:
    return c.phase, c.kind, cause_text(c.cause), " and ".join(c.axes)


def _runners_up(plan: PlanFacts) -> tuple[Section, ...]:
    others = plan.other_pipelines
    if not others:
        return ()
    shown, rest = head(others, _RUNNERS_UP)
    rows = tuple(
        (
            cut_text(r.stages),
            _order(r),
            seconds_text(r.step_s),
            slower_text(r.step_s, plan.step_s),
            bytes_text(r.peak_bytes),
        )
        for r in shown
    )
    columns = (
        Column("units on devices, by stage", narrowest=24), Column("schedule"),
        *(Column(t, right=True) for t in ("step", "slower by", "fullest device")),
    )  # fmt: skip
    return (Section("Other cuts that were tried", (Table(columns, rows, f"and {len(rest)} more" if rest else ""),)),)


def _order(found: PipelineRunnerUp) -> str:
    return f"{found.schedule}, {found.microbatches}"


def cut_text(stages: Sequence[tuple[int, int]]) -> str:
    """A cut in words: units on devices of each stage, equal neighbours said once.

    >>> cut_text([(4, 2), (2, 1), (2, 1)])
    '4 on 2, 2x (2 on 1)'
    """
    runs = [(f"{units} on {devices}", len(list(same))) for (units, devices), same in itertools.groupby(stages)]
    return ", ".join(word if n == 1 else f"{n}x ({word})" for word, n in runs)
