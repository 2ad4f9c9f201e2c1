"""A page as text in a terminal: rich where there is colour, plain and 80 columns wide everywhere."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from autopar.plan import PlanFacts
from autopar.report.page import plan_page
from autopar.report.parts import Lines, Page, Table

_INDENT = 2
_GAP = 2
_LABEL = re.compile(r"\w* {2,}")


def plan_text(plan: PlanFacts, width: int = 80) -> str:
    """The page of a plan as plain text.

    Args:
      plan: the plan.
      width: columns.

    Returns:
      Lines of at most ``width`` characters, without colour codes.
    """
    return page_text(plan_page(plan), width)


def print_plan(plan: PlanFacts, console: Console | None = None) -> None:
    """Print the page of a plan.

    Args:
      plan: the plan.
      console: where to; by default standard output, with colour if it is a terminal.
    """
    print_page(plan_page(plan), console or Console(highlight=False))


def page_text(page: Page, width: int) -> str:
    """A page as plain text of at most ``width`` columns."""
    file = io.StringIO()
    _render(page, Console(file=file, width=width, color_system=None, highlight=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def print_page(page: Page, console: Console) -> None:
    """Print a page: with colour on a terminal, else as plain text."""
    if console.is_terminal:
        _render(page, console)
    else:
        console.print(page_text(page, console.width), end="", markup=False, highlight=False, soft_wrap=True)


def _render(page: Page, console: Console) -> None:
    for part in _rendered(page, console.width):
        console.print(part)


def _rendered(page: Page, width: int) -> Iterator[RenderableType]:
    yield Text(page.title, style="bold cyan")
    yield Text(page.summary, style="bold")
    for section in page.sections:
        yield Text()
        yield Text(section.title, style="bold")
        for body in section.body:
            inner = _lines(body, width - _INDENT) if isinstance(body, Lines) else _table(body, width - _INDENT)
            yield Padding(inner, (0, 0, 0, _INDENT), expand=False)
            if isinstance(body, Table) and body.more:
                yield Padding(Text(body.more, style="dim"), (0, 0, 0, _INDENT), expand=False)


def _widths(table: Table, width: int) -> list[int]:
    """Columns of text for each column: what it needs, the widest that may wrap being narrowed until all fit."""
    cells = zip(*([c.title for c in table.columns], *table.rows), strict=True)
    widths = [max(map(cell_len, column)) for column in cells]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0:
        flexible = [i for i, c in enumerate(table.columns) if c.narrowest is not None and widths[i] > c.narrowest]
        if not flexible:
            break
        widths[max(flexible, key=widths.__getitem__)] -= 1
        excess -= 1
    return widths


def _lines(lines: Lines, width: int) -> Text:
    return Text("\n".join(_hanging(line, width) for line in lines.lines))


def _hanging(line: str, width: int) -> str:
    """A line broken to a width, what follows the first under its words, not under its label.

    >>> print(_hanging("again  stage 0 attention only", 22))
    again  stage 0
           attention only
    """
    label = _LABEL.match(line)
    indent = " " * (label.end() if label else 0)
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)


def _table(table: Table, width: int) -> RichTable:
    # A box-free table reads the same on every terminal and in every log.
    found = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for column, columns in zip(table.columns, _widths(table, width), strict=True):
        found.add_column(
            Text(column.title), justify="right" if column.right else "left", width=columns, overflow="fold"
        )
    for row in table.rows:
        found.add_row(*map(Text, row))
    return found
