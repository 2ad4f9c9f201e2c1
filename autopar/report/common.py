"""What the pages of all plans have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from autopar.mesh import Cluster, Device
from autopar.plan import CollectiveRecord, PlanFacts
from autopar.report.parts import Column, Lines, Section, Table, head
from autopar.units import bytes_text, seconds_text

_WARNINGS = 8
_HINTS = 8
_NUMBERED = re.compile(r"\d+")

AMOUNTS = (Column("count", right=True), Column("bytes", right=True), Column("time", right=True))


def amounts(records: Sequence[CollectiveRecord]) -> tuple[str, str, str]:
    """Executions, bytes and seconds of collectives together."""
    count = sum(c.count for c in records)
    nbytes = sum(c.bytes * c.count for c in records)
    return f"{count:,}", bytes_text(nbytes), seconds_text(sum(c.seconds for c in records))


def summed(
    records: Sequence[CollectiveRecord], key: Callable[[CollectiveRecord], tuple[str, ...]]
) -> list[tuple[tuple[str, ...], list[CollectiveRecord]]]:
    """Collectives grouped by a key, the longest group first."""
    groups: dict[tuple[str, ...], list[CollectiveRecord]] = {}
    for c in records:
        groups.setdefault(key(c), []).append(c)
    return sorted(groups.items(), key=lambda item: -sum(c.seconds for c in item[1]))


def cause_text(cause: str) -> str:
    """``P(sum)->S0`` in words.

    >>> cause_text("P(sum)->S0"), cause_text("S1->R"), cause_text("S0->S2"), cause_text("P(max)->R"), cause_text("halo")
    ('sum and split', 'gather', 'exchange', 'max', 'edges')
    """
    if cause == "halo":
        return "edges"
    src, _, dst = cause.partition("->")
    if src.startswith("P("):
        return src[2:-1] + (" and split" if dst.startswith("S") else "")
    return "gather" if dst == "R" else "exchange"


def stage_devices(plan: PlanFacts) -> tuple[Device, ...]:
    """What the devices of each stage are."""
    cluster = Cluster.from_dict(plan.cluster)
    return tuple(cluster.islands[cluster.island_at(stage.devices[0])].device for stage in plan.stages)


def device_names(plan: PlanFacts) -> tuple[str, ...]:
    """What each stage's devices are called; nothing where the cluster has only one type of them.

    Unlike devices of one name are told apart by the number of their island.
    """
    cluster = Cluster.from_dict(plan.cluster)
    devices = [island.device for island in cluster.islands]
    unlike = [d for i, d in enumerate(devices) if d not in devices[:i]]
    if len(unlike) == 1:
        return ()
    shared = len({d.name for d in unlike}) < len(unlike)
    islands = [cluster.island_at(stage.devices[0]) for stage in plan.stages]
    return tuple(devices[i].name + (f" of island {i}" if shared else "") for i in islands)


def workers(plan: PlanFacts) -> list[list[int]]:
    """For each group of devices that has stages, these stages."""
    found: dict[tuple[int, int], list[int]] = {}
    for s, stage in enumerate(plan.stages):
        found.setdefault(stage.devices, []).append(s)
    return list(found.values())


def hint_sections(plan: PlanFacts) -> tuple[Section, ...]:
    """What was asked for of parts of the model, and what the plan would be without it."""
    if not plan.hints:
        return ()
    if not plan.hint_costs:
        return (Section("Hints", (_hint_lines(plan.hints),)),)
    rows = tuple(
        (
            cost.hints[0] if len(cost.hints) == 1 else f"all {len(cost.hints)} hints",
            signed_text(plan.step_s - cost.step_s, seconds_text),
            signed_text(plan.peak_bytes - cost.peak_bytes, bytes_text),
            signed_text(plan.collective_bytes - cost.collective_bytes, bytes_text),
        )
        for cost in plan.hint_costs
    )
    columns = (Column("hint", narrowest=24), *(Column(t, right=True) for t in ("step", "peak", "communicated")))
    alone = {hint for cost in plan.hint_costs if len(cost.hints) == 1 for hint in cost.hints}
    others = tuple(hint for hint in plan.hints if hint not in alone)
    more = (_hint_lines(others),) if others else ()
    return (Section("Hints, and what each adds: planned again without it", (Table(columns, rows), *more)),)


def _hint_lines(hints: Sequence[str]) -> Lines:
    shown, rest = head(hints, _HINTS)
    return Lines((*shown, *((f"and {len(rest)} more: see plan.hints",) if rest else ())))


def signed_text(difference: float, text: Callable[[float], str]) -> str:
    """A difference in words.

    >>> signed_text(-0.002, seconds_text), signed_text(1024, bytes_text), signed_text(0, bytes_text)
    ('-2 ms', '+1 KiB', 'nothing')
    """
    if not difference:
        return "nothing"
    return f"{'+' if difference > 0 else '-'}{text(abs(difference))}"


def slower_text(step_s: float, best_s: float) -> str:
    """How much slower than the best, as a share of it."""
    return percent_text(step_s / best_s - 1) if best_s else "-"


def warning_sections(plan: PlanFacts) -> tuple[Section, ...]:
    """The warnings, those that differ only in numbers said once."""
    alike: dict[str, list[str]] = {}
    for warning in plan.warnings:
        alike.setdefault(_NUMBERED.sub("*", warning), []).append(warning)
    said = [f"{w[0]}{f' (and {len(w) - 1} alike)' if len(w) > 1 else ''}" for w in alike.values()]
    if len(said) > _WARNINGS:
        said = [*said[:_WARNINGS], f"and {len(said) - _WARNINGS} more: see plan.warnings"]
    return (Section("Warnings", (Lines(tuple(said)),)),) if said else ()


def percent_text(share: float) -> str:
    """Two figures, enough to see that a small share is not none.

    >>> percent_text(1), percent_text(0.1234), percent_text(0.0004), percent_text(0), percent_text(1e-9)
    ('100%', '12%', '0.04%', '0%', '<0.01%')
    """
    if 0 < share < 1e-4:
        return "<0.01%"
    return f"{share:.0%}" if share >= 0.0995 or not share else f"{100 * share:.2g}%"
