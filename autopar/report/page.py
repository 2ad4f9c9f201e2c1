"""What the page of a plan says, in the order in which people ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autopar.mesh import Cluster
from autopar.plan import CollectiveRecord, PlanFacts
from autopar.report.arguments import argument_sections
from autopar.report.common import (
    AMOUNTS,
    amounts,
    cause_text,
    hint_sections,
    percent_text,
    slower_text,
    summed,
    warning_sections,
)
from autopar.report.links import link_sections
from autopar.report.memory import memory_section
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.paths import merged, repeated
from autopar.report.pipeline import pipeline_page
from autopar.report.words import AxisUse, axis_uses, axis_words, sentence
from autopar.units import bytes_text, seconds_text

_KINDS = 6
_PLACES = 6
_RUNNERS_UP = 3


def plan_page(plan: PlanFacts) -> Page:
    """The page of a plan. Its length does not grow with the number of layers."""
    if plan.stages:
        return pipeline_page(plan)
    cluster = Cluster.from_dict(plan.cluster)
    title = f"{plan.name} on {cluster.name}, strategy {plan.strategy}"
    sections = [
        Section("Prediction", (Lines(_prediction(plan, cluster)),)),
        *hint_sections(plan),
        _axes(plan),
        *argument_sections(plan),
        *_communication(plan),
        *link_sections(plan),
        memory_section(plan),
        *_runners_up(plan),
        *warning_sections(plan),
    ]
    return Page(title, sentence(plan), tuple(sections))


def _prediction(plan: PlanFacts, cluster: Cluster) -> tuple[str, ...]:
    device = cluster.device.memory_bytes
    share = (
        "" if math.isinf(device) else f", {percent_text(plan.peak_bytes / device)} of the device's {bytes_text(device)}"
    )
    split = f"{seconds_text(plan.compute_s)} compute, {seconds_text(plan.communication_s)} communication"
    return (
        f"step    {seconds_text(plan.step_s)}: {split}",
        f"memory  {bytes_text(plan.peak_bytes)} at the peak of each device{share}",
        *_microbatches(plan),
        *_certificate(plan),
    )


def _microbatches(plan: PlanFacts) -> tuple[str, ...]:
    if plan.microbatches == 1:
        return ()
    alone = ("        what couples examples is computed over each alone",) if plan.per_microbatch else ()
    return (f"batch   in {plan.microbatches} micro-batches, one after the other", *alone)


def _certificate(plan: PlanFacts) -> tuple[str, ...]:
    c = plan.certificate
    if c.status == "given":
        return ("proof   none: this plan was given, not searched",)
    traits = (("followers grouped", c.folding != "exact"), ("layers tied", c.tied), ("choices pruned", c.pruned))
    how = [word for word, so in traits if so]
    scope = "among the choices kept" if c.pruned else "on this mesh shape"
    program = f" ({', '.join(how)})" if how else ""
    if c.bound_s > 0:
        proof = f"within {percent_text(c.gap)} of the proven bound {seconds_text(c.bound_s)}"
    else:
        proof = "no bound was proven"
    return (
        f"proof   {c.status} {scope}: {proof}",
        f"search  {c.variables:,} variables, {c.constraints:,} constraints{program}",
        f"        built in {seconds_text(c.build_s)}, solved in {seconds_text(c.solve_s)} by {c.solver}",
    )


def _axes(plan: PlanFacts) -> Section:
    uses = axis_uses(plan)
    if not uses:
        return Section("Mesh", (Lines(("one device",)),))

    def row(what: str, share: Callable[[AxisUse], float]) -> tuple[str, ...]:
        return (what, *(percent_text(share(u)) if share(u) else "-" for u in uses))

    columns = (Column("split, by share of bytes"), *(Column(f"{u.name}={u.size}", right=True) for u in uses))
    rows = (
        row("batch, by examples", lambda u: u.examples),
        row("batch, by other dims", lambda u: u.other_dims),
        row("parameters", lambda u: u.parameters),
        row("  of these by experts", lambda u: u.experts),
        row("  of these gathered for use", lambda u: u.gathered),
        row("optimizer state", lambda u: u.optimizer),
    )
    shown = tuple(r for r in rows if any(cell != "-" for cell in r[1:])) or rows[:1]
    return Section("What each mesh axis splits", (Table(columns, shown),))


def _communication(plan: PlanFacts) -> tuple[Section, ...]:
    records = plan.collectives
    if not records:
        return (Section("Communication", (Lines(("none",)),)),)
    total = f"{seconds_text(plan.communication_s)}, {bytes_text(plan.collective_bytes)} per device and step"
    words = axis_words(plan)
    by_kind = summed(records, lambda c: (c.kind, " and ".join(c.axes), words.get(c.axes[0], "")))
    shown_kinds, rest_kinds = head(by_kind, _KINDS)
    kinds = Table(
        (Column("collective"), Column("over"), Column("for"), *AMOUNTS),
        tuple((*key, *amounts(found)) for key, found in shown_kinds),
        _left(rest_kinds),
    )
    places = summed(records, lambda c: (c.phase, c.kind, " and ".join(c.axes), cause_text(c.cause), repeated(c.where)))
    shown, rest = head(places, _PLACES)
    several = sum(a.size > 1 for a in plan.mesh) > 1
    columns = (Column("phase"), Column("why", narrowest=14), Column("where", narrowest=16), *AMOUNTS[1:])
    where = Table(
        columns,
        tuple(
            (phase, f"{cause} over {axes}" if several else cause, merged([c.where for c in found]), *amounts(found)[1:])
            for (phase, _, axes, cause, _), found in shown
        ),
        _left(rest),
    )
    return (
        Section(f"Communication: {total}", (kinds,)),
        Section("Where it is needed, longest first", (where,)),
    )


def _left(rest: Sequence[tuple[tuple[str, ...], Sequence[CollectiveRecord]]]) -> str:
    """What is left out of a table of collectives."""
    if not rest:
        return ""
    count, nbytes, seconds = amounts([c for _, found in rest for c in found])
    return f"and {len(rest)} more: {count} collectives, {nbytes}, {seconds}"


def _runners_up(plan: PlanFacts) -> tuple[Section, ...]:
    if not plan.runners_up:
        return ()
    shown, rest = head(plan.runners_up, _RUNNERS_UP)
    rows = tuple(
        (
            "x".join(map(str, r.mesh)),
            seconds_text(r.step_s),
            slower_text(r.step_s, plan.step_s),
            bytes_text(r.peak_bytes) if r.peak_bytes is not None else "-",
            r.status,
        )
        for r in shown
    )
    columns = (Column("mesh"), *(Column(t, right=True) for t in ("step", "slower by", "peak")), Column("proof"))
    slowest = f", the slowest {seconds_text(max(r.step_s for r in rest))}" if rest else ""
    more = f"and {len(rest)} more{slowest}" if rest else ""
    return (Section("Other mesh shapes that were tried", (Table(columns, rows, more),)),)
