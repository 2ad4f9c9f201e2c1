"""The compiled step beside its plan, as text."""

from __future__ import annotations

from rich.console import Console

from autopar.lower import Audit
from autopar.report.parts import Column, Lines, Page, Section, Table
from autopar.report.text import page_text, print_page
from autopar.units import bytes_text


def audit_text(audit: Audit, width: int = 80) -> str:
    """Planned against compiled collectives and memory, as plain text of at most ``width`` columns."""
    return page_text(audit_page(audit), width)


def print_audit(audit: Audit, console: Console | None = None) -> None:
    """Print planned against compiled collectives and memory."""
    print_page(audit_page(audit), console or Console(highlight=False))


def audit_page(audit: Audit) -> Page:
    """What the audit says."""
    rows = tuple(
        (
            row.kind,
            f"{row.planned_count:,}",
            f"{row.compiled_count:,}",
            bytes_text(row.planned_bytes),
            bytes_text(row.compiled_bytes),
            "yes" if row.agrees else "NO",
        )
        for row in audit.rows
    )
    titles = ("planned", "compiled", "planned bytes", "compiled bytes", "equal")
    columns = (Column("collective"), *(Column(t, right=True) for t in titles))
    collectives: Table | Lines = Table(columns, rows) if rows else Lines(("none planned, none compiled",))
    verdict = "runs as planned" if audit.agrees else "does NOT run as planned"
    return Page(
        "Predicted against compiled (per device and step)",
        f"The compiled program {verdict}.",
        (
            Section("Collectives", (collectives,)),
            Section("Peak memory of one device", (Lines(_peak(audit)),)),
        ),
    )


def _peak(audit: Audit) -> tuple[str, ...]:
    predicted = f"predicted {bytes_text(audit.planned_peak_bytes)}"
    error = audit.planned_peak_bytes / max(audit.compiled_peak_bytes, 1) - 1
    side = "over" if error >= 0 else "UNDER"
    return (f"{predicted}, XLA's own figure {bytes_text(audit.compiled_peak_bytes)}: {abs(error):.1%} {side}",)
