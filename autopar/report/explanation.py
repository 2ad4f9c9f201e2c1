"""What the pages of explanations say: why a part lies as it does, and what other options would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autopar.explain import Alternative, ExplanationFacts, Figures, WhatIfFacts
from autopar.paths import dotted, keys
from autopar.plan import PlanFacts
from autopar.report.common import percent_text, signed_text
from autopar.report.links import bottleneck_text
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.paths import merged, repeated
from autopar.report.words import array_text, sentence
from autopar.units import bytes_text, seconds_text

_NAMES = 4
_EXCLUDED = 8


def explanation_page(found: ExplanationFacts) -> Page:
    """The page of an explanation."""
    mesh = " ".join(f"{name}={size}" for name, size in found.mesh)
    where = f"stage {found.stage}, mesh {mesh}" if found.stage is not None else f"mesh {mesh}"
    sections = [
        Section("As planned", (Lines((*_names(found), *found.used)),)),
        Section("Planned again with one layout forced", (_alternatives(found),)),
        *_excluded(found),
        Section("What would change it", (Lines(_changes(found)),)),
        *([Section("Notes", (Lines(found.notes),))] if found.notes else []),
    ]
    return Page(f"Why {found.asked} lies as it does, {where}", _summary(found), tuple(sections))


def _summary(found: ExplanationFacts) -> str:
    chosen = " or ".join(found.chosen) or "not chosen alone"
    others = [a for a in _feasible(found) if a.words not in found.chosen]
    if not others:
        return f"{chosen}: nothing else is possible"
    next_s = others[0].figures.step_s - found.figures.step_s if others[0].figures else 0.0
    if next_s <= 1e-9 * found.figures.step_s:
        return f"{chosen}: as fast as {others[0].words}"
    return f"{chosen}: {others[0].words} would make the step {seconds_text(next_s)} longer"


def _names(found: ExplanationFacts) -> tuple[str, ...]:
    alike: dict[str, list[str]] = {}
    for name in found.names:
        alike.setdefault(repeated(name), []).append(name)
    shown, rest = head([_said(names) for names in alike.values()], _NAMES)
    array = array_text(found.shape, found.dtype)
    chosen = " or ".join(found.chosen)
    more = (f"and {len(rest)} more",) if rest else ()
    return (*(f"{name} {array}: {chosen}" for name in shown), *more)


def _said(names: Sequence[str]) -> str:
    name = merged(list(names)) if len(names) > 1 else names[0]
    return f"{dotted(keys(name)) if ' ' not in name else name}{f' x{len(names)}' if len(names) > 1 else ''}"


def _feasible(found: ExplanationFacts) -> list[Alternative]:
    return [a for a in found.alternatives if a.figures is not None]


def _alternatives(found: ExplanationFacts) -> Table:
    rows = tuple(_row(found, a, a.figures) for a in found.alternatives if a.figures is not None)
    columns = (
        Column("layout", narrowest=16),
        *(Column(t, right=True) for t in ("step", "longer by", "communicated", "peak")),
    )
    more = f"and {found.left_out} more layouts that were not tried" if found.left_out else ""
    return Table(columns, rows, more)


def _row(found: ExplanationFacts, a: Alternative, figures: Figures) -> tuple[str, ...]:
    longer_s = figures.step_s - found.figures.step_s
    if abs(longer_s) <= 1e-9 * found.figures.step_s:
        longer_s = 0.0
    longer = f"{seconds_text(longer_s)}, {percent_text(longer_s / found.figures.step_s)}" if longer_s > 0 else "-"
    if longer_s < 0:
        longer = f"-{seconds_text(-longer_s)}"
    chosen = " (as planned)" if a.words in found.chosen else ""
    figures_text = (bytes_text(figures.collective_bytes), bytes_text(figures.peak_bytes))
    return (f"{a.words}{chosen}", seconds_text(figures.step_s), longer, *figures_text)


def _excluded(found: ExplanationFacts) -> tuple[Section, ...]:
    lines = [f"{a.words}: {_why(found, a)}" for a in found.alternatives if a.figures is None]
    if not lines:
        return ()
    shown, rest = head(lines, _EXCLUDED)
    more = (f"and {len(rest)} more",) if rest else ()
    return (Section("Excluded", (Lines((*shown, *more)),)),)


def _why(found: ExplanationFacts, a: Alternative) -> str:
    if a.by == "memory" and math.isfinite(a.short_bytes):
        least = f"the smallest plan found needs {bytes_text(found.budget_bytes + a.short_bytes)} of a device"
        return f"{a.excluded}: {least}, {bytes_text(a.short_bytes)} more than it has"
    return a.excluded.rstrip(".")


def _changes(found: ExplanationFacts) -> tuple[str, ...]:
    more = found.more
    if more is not None:
        faster = found.figures.step_s - more.figures.step_s
        return (
            f"With {bytes_text(more.extra_bytes)} more memory ({bytes_text(more.memory_bytes)} of a device) it would "
            f"be {more.words}, and the step {seconds_text(faster)} shorter.",
        )
    if found.stage is not None:
        return ("Other options may (what if). Memory was weighed for the pipeline as a whole.",)
    said = next((a.excluded.rstrip(".") for a in found.alternatives if a.by == "hint"), "")
    if said:
        return (f"Leaving out a hint: {said}.",)
    others = [a for a in _feasible(found) if a.words not in found.chosen]
    hints = (f"A hint would: '{found.asked}: {others[0].words}'.",) if others else ()
    return ("No amount of memory would.", *hints)


def what_if_page(found: WhatIfFacts) -> Page:
    """The page of a plan beside the plan that other options give."""
    changed = ", ".join(f"{name}={value}" for name, value in found.changed.items())
    title = f"What if {changed}, {found.before.name}"
    if found.after is None:
        return Page(title, "there is no such plan", (Section("Why", (Lines((found.refused,)),)),))
    before, after = found.before, found.after
    longer_s = after.step_s - before.step_s
    if longer_s:
        word = "longer" if longer_s > 0 else "shorter"
        summary = f"the step is {seconds_text(abs(longer_s))} {word} ({percent_text(abs(longer_s) / before.step_s)})"
    else:
        summary = "the step takes as long"

    def row(what: str, of: Callable[[PlanFacts], float], text: Callable[[float], str]) -> tuple[str, ...]:
        return (what, text(of(before)), text(of(after)), signed_text(of(after) - of(before), text))

    rows = (
        row("step", lambda p: p.step_s, seconds_text),
        row("  compute", lambda p: p.compute_s, seconds_text),
        row("  communication", lambda p: p.communication_s, seconds_text),
        row("  waiting for other stages", lambda p: p.idle_s, seconds_text),
        row("peak of a device", lambda p: p.peak_bytes, bytes_text),
        row("communicated", lambda p: p.collective_bytes, bytes_text),
        row("stages", lambda p: max(len(p.stages), 1), lambda n: f"{n:.0f}"),
        row("micro-batches", lambda p: p.microbatches, lambda n: f"{n:.0f}"),
    )
    columns = (Column(""), *(Column(t, right=True) for t in ("as planned", "what if", "difference")))
    said = Lines((f"As planned: {sentence(before)}.", f"What if: {sentence(after)}."))
    sections = (Section("Difference", (Table(columns, rows),)), Section("In words", (said,)))
    return Page(title, summary, sections)


def overview_lines(plan: PlanFacts) -> tuple[str, ...]:
    """What there is to explain of a plan as a whole."""
    return (sentence(plan), bottleneck_text(plan))


__all__ = ["explanation_page", "overview_lines", "what_if_page"]
