"""A sweep as a page."""

from __future__ import annotations

from autopar.report.common import percent_text
from autopar.report.parts import Column, Lines, Page, Section, Table
from autopar.sweep.rows import PLANNED, Row, SweepResult
from autopar.units import bytes_text, seconds_text


def sweep_page(found: SweepResult) -> Page:
    """Every point in a table, then the fastest plan of each cluster in words, and why others have none."""
    planned = [row for row in found.rows if row.status == PLANNED]
    summary = f"{len(planned)} of {len(found.rows)} points have a plan; {'weak' if found.weak else 'strong'} scaling"
    sections = [Section("Predicted, the fastest on each cluster marked *", (_table(found),))]
    words = tuple(f"{row.cluster}, {row.strategy}: {row.plan}" for row in found.best())
    sections += [Section("The fastest plans", (Lines(words),))] if words else []
    without = [
        f"{row.cluster}, {row.strategy}, {row.microbatches}: {row.why.partition('. ')[0]}"
        for row in found.rows
        if row.why
    ]
    sections += [Section("No plan", (Lines(tuple(without)),))] if without else []
    return Page(f"sweep of {found.about['step']}", summary, tuple(sections))


def _table(found: SweepResult) -> Table:
    best = {row.key for row in found.best()}
    ran = any(row.measured_step_s is not None for row in found.rows)
    titles = ("in", "step", *(("measured",) if ran else ()), f"{found.unit}/s", "MFU", "efficiency", "peak")
    columns = (Column("cluster"), Column("strategy"), *(Column(title, right=True) for title in titles))

    def cells(row: Row) -> tuple[str, ...]:
        head = (f"{row.cluster}{' *' if row.key in best else ''}", row.strategy)
        if row.status != PLANNED:
            return (*head, str(row.microbatches), row.status, *("-" for _ in titles[2:]))
        measured = "-" if row.measured_step_s is None else seconds_text(row.measured_step_s)
        return (
            *head,
            str(row.chosen_microbatches),
            seconds_text(row.step_s),
            *((measured,) if ran else ()),
            f"{row.units_per_s:,.4g}",
            "-" if row.mfu is None else percent_text(row.mfu),
            percent_text(found.efficiency(row)),
            bytes_text(row.peak_bytes),
        )

    return Table(columns, tuple(map(cells, found.rows)))
