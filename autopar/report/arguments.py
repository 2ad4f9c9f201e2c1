"""The table of arguments: where each lies, repeated layers said once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autopar.plan import PlanFacts
from autopar.report.parts import Column, Lines, Section, Table, head
from autopar.report.paths import braced, dotted, keys, merged, part_of, repeated, shared_prefix
from autopar.report.placements import SAME, Placed, placed
from autopar.report.words import array_text, ranges_text
from autopar.units import bytes_text

# (kinds of arguments, the title of their section, rows of its table)
_PLAIN = (
    (("parameter",), "Parameters", 12),
    (("optimizer",), "Optimizer state", 6),
    (("batch", "state", "constant"), "Batch and other state", 6),
)
_STAGED = (
    (("parameter",), "Parameters", 8),
    (("optimizer", "state", "batch", "constant"), "Batch and other state", 3),
)

_CAPTURED = "(captured)"

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """An array of one stage, or several that are alike: what is said of them.

    Attributes:
      names: of the arrays, below their root.
      title: one name for all.
      words: what they are, and how they lie.
      local_bytes: on one device, by stage.
      first: is said before others, however small.
    """

    names: tuple[str, ...]
    title: str
    words: Words
    local_bytes: Mapping[int, int]
    first: bool = False

    @property
    def most_bytes(self) -> int:
        return max(self.local_bytes.values())


def argument_sections(plan: PlanFacts) -> tuple[Section, ...]:
    """A section for each kind of argument, largest rows first; with stages one for parameters, one for the rest.

    What one stage hands to another is no argument of the step, and is left out.
    """
    plans = [stage.plan for stage in plan.stages] or [plan]
    stages = tuple(enumerate(map(placed, plans)))
    kinds = _STAGED if plan.stages else _PLAIN
    sections = []
    for which, title, limit in kinds:
        members = [(s, p) for s, found in stages for p in found if p.argument.kind in which]
        members = [(s, p) for s, p in members if p.argument.name or not plan.stages]
        if members:
            sections.append(_section(members, title, limit, staged=len(stages) > 1))
    return tuple(sections)


def _section(members: Sequence[tuple[int, Placed]], title: str, limit: int, *, staged: bool) -> Section:
    parameters = members[0][1].argument.kind == "parameter"
    grown = parameters and any(p.state for _, p in members)
    paths = [keys(p.argument.name) for _, p in members]
    root, below = len(shared_prefix(paths)), {path[-1:] for path in paths}
    end = (
        -1 if below == {("value",)} and min(map(len, paths)) > root + 1 else None
    )  # the leaf of every flax.nnx variable
    dtypes = {p.argument.dtype for _, p in members}
    rows = [_row(s, p, slice(root, end), grown, typed=len(dtypes) > 1) for s, p in members]
    of = f", {dtypes.pop()}" if len(dtypes) == 1 else ""
    title = f"{title}{of}{', with their optimizer state' if grown else ''}"
    heading = f"{title}: {'at most ' if staged else ''}{bytes_text(_summed(rows).most_bytes)} per device"
    if not parameters and not staged and len(rows) > 3 and all(p.words == "whole" for _, p in members):
        return Section(heading, (Lines((f"{len(rows)} arrays, all whole on every device",)),))
    return Section(heading, (_table(dotted(paths[0][:root]) or "name", rows, limit, staged=staged),))


def _row(stage: int, found: Placed, told: slice, grown: bool, *, typed: bool) -> _Row:
    a = found.argument
    array = array_text(a.shape, a.dtype) if typed else "x".join(map(str, a.shape)) or "scalar"
    name = dotted(keys(a.name)[told]) or _CAPTURED
    state = f"; state {found.state or 'none'}" if grown and found.state != SAME else ""
    return _Row((name,), name, (array, found.words + state), {stage: found.local_bytes}, a.kind == "batch")


def _table(root: str, rows: Sequence[_Row], limit: int, *, staged: bool) -> Table:
    ranked = sorted(_siblings(_layers(rows)), key=lambda row: (not row.first, -row.most_bytes))
    shown, rest = head(ranked, limit)
    everywhere = max(len(row.local_bytes) for row in ranked)
    stages = staged and any(len(row.local_bytes) < everywhere for row in shown)
    columns = [Column(root, narrowest=20), Column("", right=True)]
    columns += [Column("stage", narrowest=5)] if stages else []
    columns += [Column("array"), Column("placement", narrowest=14)]
    cells = tuple(
        (
            row.title,
            f"x{len(row.names)}" if len(row.names) > 1 else "",
            *((ranges_text(sorted(row.local_bytes)),) if stages else ()),
            *row.words,
            bytes_text(row.most_bytes),
        )
        for row in shown
    )
    more = ""
    if rest:
        left = _summed(rest)
        more = f"and {len(left.names)} smaller arrays in {len(rest)} rows, {bytes_text(left.most_bytes)} per device"
    return Table((*columns, Column("bytes", right=True)), cells, more)


def _layers(rows: Iterable[_Row]) -> list[_Row]:
    """The same leaf of different layers as one row, where all is said alike: of each stage, then of all."""
    alike: dict[tuple[int, str, Words], list[_Row]] = {}
    for row in rows:
        (stage,) = row.local_bytes
        alike.setdefault((stage, repeated(row.title), row.words), []).append(row)
    over: dict[tuple[str, Words], list[_Row]] = {}
    for (_, name, words), found in alike.items():
        over.setdefault((name, words), []).append(_summed(found))
    return [_summed(found) for found in over.values()]


def _siblings(rows: Iterable[_Row]) -> list[_Row]:
    """Leaves of the same part of the model as one row, where all is said alike."""
    alike: dict[tuple[str, Words, tuple[int, ...]], list[_Row]] = {}
    for row in rows:
        alike.setdefault((part_of(row.title), row.words, tuple(sorted(row.local_bytes))), []).append(row)
    return [
        _Row(both.names, braced([row.title for row in found]), both.words, both.local_bytes, both.first)
        for found in alike.values()
        for both in (_summed(found),)
    ]


def _summed(rows: Sequence[_Row]) -> _Row:
    """Rows as one; a name that several stages have is one array."""
    names = tuple(name for row in rows for name in row.names)
    names = names if _CAPTURED in names else tuple(dict.fromkeys(names))
    total: dict[int, int] = {}
    for row in rows:
        for stage, nbytes in row.local_bytes.items():
            total[stage] = total.get(stage, 0) + nbytes
    alike = len({repeated(name) for name in names}) == 1
    return _Row(names, merged(names) if alike else rows[0].title, rows[0].words, total, rows[0].first)
