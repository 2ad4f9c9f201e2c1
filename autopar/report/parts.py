"""The parts of a page: what it says, with no word on how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
      title: its heading.
      right: align to the right (numbers).
      narrowest: columns of text down to which it may be wrapped; None never.
    """

    title: str
    right: bool = False
    narrowest: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; ``more`` says in one line what was left out."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """Short sentences, one below the other."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    body: tuple[Table | Lines, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: a title, one sentence that says it all, and sections."""

    title: str
    summary: str
    sections: tuple[Section, ...]


def head(items: Sequence[T], limit: int) -> tuple[Sequence[T], Sequence[T]]:
    """The first ``limit`` items and the rest; a rest of one is not worth a line of its own and is shown.

    >>> head([1, 2, 3], 2), head([1, 2, 3, 4], 2)
    (([1, 2, 3], []), ([1, 2], [3, 4]))
    """
    cut = limit if len(items) > limit + 1 else len(items)
    return items[:cut], items[cut:]
