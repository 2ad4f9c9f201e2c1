"""The table of arguments: where each lies, repeated layers said once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.plan import Argument, PlanFacts
from autopar.report.parts import Column, Lines, Section, Table, head
from autopar.report.paths import dotted, keys, merged, repeated, shared_prefix
from autopar.report.words import array_text, by_kind, layout_text, local_nbytes, parameter_of
from autopar.units import bytes_text

_ROWS = 16
_TITLES = {
    "parameter": "parameters",
    "optimizer": "optimizer state",
    "state": "other state",
    "batch": "batch",
    "constant": "constants",
}
_SAME = "same"


@dataclass(frozen=True, slots=True)
class _Row:
    """One array, and the optimizer state that follows it: what it is, where it lies, bytes on one device."""

    name: str
    words: tuple[str, ...]
    local_bytes: int


def argument_sections(plan: PlanFacts) -> tuple[Section, ...]:
    """A section for each kind of argument, largest rows first."""
    owner = parameter_of(plan)
    followers: dict[str, list[Argument]] = {}
    for leaf in by_kind(plan, "optimizer"):
        if leaf.name in owner:
            followers.setdefault(owner[leaf.name].name, []).append(leaf)
    sections = []
    for kind, title in _TITLES.items():
        members = [a for a in by_kind(plan, kind) if a.name not in owner]
        if members:
            sections.append(_section(plan, kind, title, members, followers))
    return tuple(sections)


def _section(
    plan: PlanFacts, kind: str, title: str, members: Sequence[Argument], followers: dict[str, list[Argument]]
) -> Section:
    paths = [keys(a.name) for a in members]
    root = shared_prefix(paths)
    grown = kind == "parameter" and bool(followers)
    rows = []
    for a, path in zip(members, paths, strict=True):
        words = [array_text(a.shape, a.dtype), _layout(a, plan)]
        states = followers.get(a.name, [])
        if grown:
            words.append("; ".join(dict.fromkeys(_follower(a, s, plan) for s in states)) or "none")
        local = sum(local_nbytes(x, plan.mesh_shape) for x in (a, *states))
        rows.append(_Row(dotted(path[len(root) :]), tuple(words), local))
    columns = [Column(dotted(root) or "name", narrowest=28), Column("", right=True), Column("array")]
    columns.append(Column("placement", narrowest=12))
    if grown:
        columns.append(Column("optimizer state", narrowest=9))
    columns.append(Column("bytes", right=True))
    total = bytes_text(sum(r.local_bytes for r in rows))
    heading = f"{title[0].upper()}{title[1:]}{' and optimizer state' if grown else ''}: {total} per device"
    if not any(any(p >= 0 for p in a.layout) for a in members) and len(members) > 3 and kind != "parameter":
        return Section(heading, (Lines((f"{len(members)} arrays, all whole on every device",)),))
    return Section(heading, (_table(tuple(columns), rows),))


def _layout(a: Argument, plan: PlanFacts) -> str:
    return layout_text(a.layout, len(a.shape), plan.axis_names)


def _follower(parameter: Argument, state: Argument, plan: PlanFacts) -> str:
    return _SAME if state.layout == parameter.layout else _layout(state, plan)


def _table(columns: tuple[Column, ...], rows: Sequence[_Row]) -> Table:
    grouped: dict[tuple[str, ...], list[_Row]] = {}
    for row in rows:
        grouped.setdefault((repeated(row.name), *row.words), []).append(row)
    ranked = sorted(grouped.values(), key=lambda group: -_bytes(group))
    shown, rest = head(ranked, _ROWS)
    more = ""
    if rest:
        left = [row for group in rest for row in group]
        more = f"and {len(left)} smaller arrays in {len(rest)} rows, {bytes_text(_bytes(left))} per device"
    cells = tuple(
        (
            merged([row.name for row in group]),
            f"x{len(group)}" if len(group) > 1 else "",
            *group[0].words,
            bytes_text(_bytes(group)),
        )
        for group in shown
    )
    return Table(columns, cells, more)


def _bytes(rows: Sequence[_Row]) -> int:
    return sum(row.local_bytes for row in rows)
