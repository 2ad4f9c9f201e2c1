"""Two plans beside each other: what changed, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.report.changes import Change, changes
from autopar.report.common import percent_text
from autopar.report.parts import Column, Lines, Page, Section, Table, head
from autopar.report.text import page_text, print_page
from autopar.report.words import sentence
from autopar.units import bytes_text, seconds_text

_TITLES = {
    "asked": "What was asked for",
    "cost": "Time of a step, on the average device",
    "memory": "Memory of the fullest device at its peak",
    "stages": "Stages and mesh",
    "layouts": "Layouts",
    "communication": "Communication in a step, on a device of the busiest stage",
    "proof": "Proof",
    "rest": "Other",
}
_ROWS = 12
_TIMES = 10  # from here on a number is said to be so many times another, not so many percent more


@dataclass(frozen=True)
class PlanDiff:
    """What changed from one plan to another. Prints as a page.

    Attributes:
      before, after: each plan's title: the step, the cluster, the strategy.
      sentences: each plan in a sentence.
      step_s, peak_bytes: of each plan, predicted.
      changes: everything that differs, how long the plans were sought left out.
    """

    before: str
    after: str
    sentences: tuple[str, str]
    step_s: tuple[float, float]
    peak_bytes: tuple[int, int]
    changes: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.changes

    def of(self, topic: str) -> tuple[Change, ...]:
        """The changes of one topic (:class:`autopar.report.changes.Change`): ``stages``, ``layouts``, ``cost``, ..."""
        return tuple(change for change in self.changes if change.topic == topic)

    def to_json(self) -> str:
        """The difference as JSON: ``same``, both plans in words, and every change with its numbers in SI units."""
        data: dict[str, Any] = {"kind": "autopar plan difference", "same": self.same}
        for i, name in enumerate(("before", "after")):
            said = {"title": (self.before, self.after)[i], "sentence": self.sentences[i]}
            data[name] = said | {"step_s": self.step_s[i], "peak_bytes": self.peak_bytes[i]}
        data["changes"] = [dataclasses.asdict(change) for change in self.changes]
        return json.dumps(data, indent=1)

    def show(self) -> None:
        """Print the difference as a page in the terminal."""
        print_diff(self)

    def __str__(self) -> str:
        return diff_text(self)


def diff(before: PlanFacts, after: PlanFacts) -> PlanDiff:
    """What changed from one plan to another.

    Args:
      before: a plan.
      after: another one, of the same step or not.

    Returns:
      The difference; ``same`` is true where every fact is equal, numbers up to rounding.
    """
    return PlanDiff(
        _title(before),
        _title(after),
        (sentence(before), sentence(after)),
        (before.step_s, after.step_s),
        (before.peak_bytes, after.peak_bytes),
        changes(before, after),
    )


def _title(plan: PlanFacts) -> str:
    return f"{plan.name} on {Cluster.from_dict(plan.cluster).name}, strategy {plan.strategy}"


def diff_text(found: PlanDiff, width: int = 80) -> str:
    """A difference as plain text of at most ``width`` columns."""
    return page_text(diff_page(found), width)


def print_diff(found: PlanDiff, console: Console | None = None) -> None:
    """Print a difference; by default to standard output."""
    print_page(diff_page(found), console or Console(highlight=False))


def diff_page(found: PlanDiff) -> Page:
    """The page of a difference. Its length does not grow with the number of layers."""
    title = found.before if found.before == found.after else f"{found.before} -> {found.after}"
    if found.same:
        return Page(title, "The plans are the same.", (Section("Both", (Lines(found.sentences[:1]),)),))
    plans = Lines((f"before  {found.sentences[0]}", f"after   {found.sentences[1]}"))
    sections = [Section("The plans", (plans,))]
    for topic, heading in _TITLES.items():
        if found.of(topic):
            sections.append(Section(heading, (_table(found.of(topic)),)))
    return Page(title, _summary(found), tuple(sections))


def _summary(found: PlanDiff) -> str:
    (one, other), (least, most) = found.step_s, found.peak_bytes
    step, memory = _grown(one, other, "s"), _grown(least, most, "bytes")
    return f"Time of a step {step or 'as before'}, memory of the fullest device {memory or 'as before'}."


def _table(found: tuple[Change, ...]) -> Table:
    counted, valued = any(c.count > 1 for c in found), any(c.values for c in found)
    shown, rest = head(found, _ROWS)
    rows = tuple(
        (
            change.what,
            *((f"x{change.count}" if change.count > 1 else "",) if counted else ()),
            change.before,
            change.after,
            *((_grown(*change.values, change.unit) if change.values else "",) if valued else ()),
        )
        for change in shown
    )
    right = valued and all(c.unit for c in found) and found[0].topic != "communication"
    columns = (
        Column("", narrowest=18), *((Column("", right=True),) if counted else ()),
        *(Column(title, right=right, narrowest=12) for title in ("before", "after")),
        *((Column("change", right=True),) if valued else ()),
    )  # fmt: skip
    return Table(columns, rows, f"and {len(rest)} more: see --json" if rest else "")


def _grown(one: float, other: float, unit: str) -> str:
    """What a number gained or lost, and the share of it; nothing where it stayed.

    >>> _grown(0.2, 0.15, "s"), _grown(1024, 64 * 1024, "bytes"), _grown(0, 1024, "bytes"), _grown(1, 1, "s")
    ('-50 ms (25%)', '+63 KiB (64 times)', '+1 KiB', '')
    """
    if one == other:
        return ""
    text = seconds_text if unit == "s" else bytes_text
    grown = f"{'+' if other > one else '-'}{text(abs(other - one))}"
    if not one or not other:
        return grown
    times = other / one
    return f"{grown} ({f'{times:,.0f} times' if times >= _TIMES else percent_text(abs(times - 1))})"


__all__ = ["PlanDiff", "diff", "diff_page", "diff_text", "print_diff"]
