"""The compiled step beside its plan, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from autopar.lower import Audit, AuditRow, PipelineAudit, StageAudit
from autopar.report.parts import Column, Lines, Page, Section, Table
from autopar.report.text import page_text, print_page
from autopar.units import bytes_text


def audit_text(audit: Audit | PipelineAudit, width: int = 80) -> str:
    """Planned against compiled collectives and memory, as plain text of at most ``width`` columns."""
    return page_text(audit_page(audit), width)


def print_audit(audit: Audit | PipelineAudit, console: Console | None = None) -> None:
    """Print planned against compiled collectives and memory."""
    print_page(audit_page(audit), console or Console(highlight=False))


def audit_page(audit: Audit | PipelineAudit) -> Page:
    """What the audit says."""
    verdict = "runs as planned" if audit.agrees else "does NOT run as planned"
    if isinstance(audit, PipelineAudit):
        rows = [(str(s), row) for s, stage in enumerate(audit.stages) for row in stage.rows]
        peaks = tuple(f"stage {s}: {line}" for s, stage in enumerate(audit.stages) for line in _peak(stage))
        said = f"The compiled pipeline {verdict}."
    else:
        rows = [("", row) for row in audit.rows]
        peaks = _peak(audit)
        said = f"The compiled program {verdict}."
    collectives = _collectives(rows) if rows else Lines(("none planned, none compiled",))
    return Page(
        "Predicted against compiled (per device and step)",
        said,
        (
            Section("Collectives", (collectives,)),
            Section("Peak memory of one device", (Lines(peaks),)),
        ),
    )


def _collectives(rows: Sequence[tuple[str, AuditRow]]) -> Table:
    titles = ("planned", "compiled", "planned bytes", "compiled bytes", "equal")
    staged = any(stage for stage, _ in rows)
    columns = (
        *((Column("stage"),) if staged else ()),
        Column("collective"),
        *(Column(t, right=True) for t in titles),
    )
    cells = tuple(
        (
            *((stage,) if staged else ()),
            row.kind,
            f"{row.planned_count:,}",
            f"{row.compiled_count:,}",
            bytes_text(row.planned_bytes),
            bytes_text(row.compiled_bytes),
            "yes" if row.agrees else "NO",
        )
        for stage, row in rows
    )
    return Table(columns, cells)


def _peak(audit: Audit | StageAudit) -> tuple[str, ...]:
    predicted = f"predicted {bytes_text(audit.planned_peak_bytes)}"
    error = audit.planned_peak_bytes / max(audit.compiled_peak_bytes, 1) - 1
    side = "over" if error >= 0 else "UNDER"
    return (f"{predicted}, XLA's own figure {bytes_text(audit.compiled_peak_bytes)}: {abs(error):.1%} {side}",)
