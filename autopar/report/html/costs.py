"""What the page says of communication, memory by kind, and the alternatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.mesh import Cluster
from autopar.plan import CollectiveRecord, PlanFacts, StageFacts
from autopar.report.common import cause_text, percent_text, slower_text, stage_devices, summed
from autopar.report.html.model import Axis, axes_of
from autopar.report.html.tree import numbers_text
from autopar.report.parts import head
from autopar.report.paths import merged, repeated
from autopar.report.pipeline import cut_text
from autopar.units import bytes_text, seconds_text

_CAUSES = 12
_PLACES = 12
_RUNNERS_UP = 14

KINDS = (
    ("parameters", ("parameter",)),
    ("optimizer state", ("optimizer",)),
    ("gradients", ("gradient",)),
    ("activations", ("activation", "residual")),
    ("micro-batches in flight", ("micro-batches in flight", "for weight programs")),
    ("transients", ("transient",)),
)
"""What memory is for, by the kinds that a plan records; all others are ``other``."""

MEMORY_KINDS = (*(name for name, _ in KINDS), "other")
"""What it is called."""


@dataclass(frozen=True)
class Place:
    """Where a collective is needed, and what it takes there."""

    where: str
    count: str
    bytes: str
    seconds: str


@dataclass(frozen=True)
class Cause:
    """Collectives of one cause; amounts are per device and step, of the stage that has most.

    Attributes:
      why: ``sum and split in backward``.
      kind: ``reduce-scatter``.
      over: the mesh axes.
      stages: that have it.
      share: of the longest cause, 0 to 1.
    """

    why: str
    kind: str
    over: tuple[Axis, ...]
    stages: str
    count: str
    bytes: str
    seconds: str
    share: float
    places: tuple[Place, ...]
    more: str


@dataclass(frozen=True)
class Kind:
    """A kind of memory: bytes on one device, and the share of the fullest device's peak."""

    name: str
    index: int
    bytes: str
    share: float


@dataclass(frozen=True)
class Memory:
    """What a device of a stage holds at its peak, by kind, and the share of what it has."""

    name: str
    peak: str
    share: str
    kinds: tuple[Kind, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """Bytes of every kind that the page knows."""
        found = {kind.name: kind.bytes for kind in self.kinds}
        return tuple(found.get(name, "-") for name in MEMORY_KINDS)


@dataclass(frozen=True)
class Choice:
    """A plan that was considered: the chosen one, or a runner-up. ``peak_bytes`` is None where it was given up."""

    name: str
    step_s: float
    step: str
    slower: str
    peak_bytes: int | None
    peak: str
    proof: str
    chosen: bool


def causes(plan: PlanFacts) -> tuple[tuple[Cause, ...], str]:
    """Collectives by cause, longest first; and what was left out."""
    groups: dict[tuple[str, ...], dict[int, list[CollectiveRecord]]] = {}
    for s, again, c in _records(plan):
        why = f"{cause_text(c.cause)} in {c.phase}{', run again' if again else ''}"
        groups.setdefault((why, c.kind, *c.axes), {}).setdefault(s, []).append(c)
    order = sorted(groups.items(), key=lambda item: -_busiest(item[1])[1])
    longest = max((_busiest(stages)[1] for _, stages in order), default=0.0) or 1.0
    shown, rest = head(order, _CAUSES)
    more = f"and {len(rest)} more: {seconds_text(sum(_busiest(stages)[1] for _, stages in rest))}" if rest else ""
    return tuple(_cause(plan, key, stages, longest) for key, stages in shown), more


def _records(plan: PlanFacts) -> Iterator[tuple[int, bool, CollectiveRecord]]:
    """(stage, run again, collective)."""
    if not plan.stages:
        yield from ((0, False, c) for c in plan.collectives)
    for s, stage in enumerate(plan.stages):
        yield from ((s, False, c) for c in stage.plan.collectives)
        yield from ((s, True, c) for c in stage.again)


def _busiest(stages: Mapping[int, Sequence[CollectiveRecord]]) -> tuple[int, float]:
    """The stage that spends most seconds, and these."""
    return max(((s, sum(c.seconds for c in found)) for s, found in stages.items()), key=lambda x: x[1])


def _cause(
    plan: PlanFacts, key: tuple[str, ...], stages: Mapping[int, Sequence[CollectiveRecord]], longest_s: float
) -> Cause:
    why, kind, *over = key
    s, seconds = _busiest(stages)
    axes = {a.name: a for a in axes_of(plan.stages[s].plan if plan.stages else plan)}
    by_place = summed(stages[s], lambda c: (repeated(c.where),))
    shown, rest = head(by_place, _PLACES)
    left = sum(c.seconds for _, found in rest for c in found)
    return Cause(
        why,
        kind,
        tuple(axes[name] for name in over),
        _stages_text(stages, s) if len(plan.stages) > 1 else "",
        *_amounts(stages[s]),
        seconds / longest_s,
        tuple(Place(merged([c.where for c in found]), *_amounts(found)) for _, found in shown),
        f"and {len(rest)} more places: {seconds_text(left)}" if rest else "",
    )


def _stages_text(stages: Mapping[int, Sequence[CollectiveRecord]], most: int) -> str:
    """Which stages have it, and whose the amounts are."""
    if len(stages) == 1:
        return f"stage {most}"
    alike = len({_amounts(found) for found in stages.values()}) == 1
    return f"stages {numbers_text(sorted(stages))}, {'each' if alike else f'most on {most}'}"


def _amounts(records: Sequence[CollectiveRecord]) -> tuple[str, str, str]:
    count = sum(c.count for c in records)
    nbytes = sum(c.bytes * c.count for c in records)
    return f"{count:,}", bytes_text(nbytes), seconds_text(sum(c.seconds for c in records))


def memory(plan: PlanFacts) -> tuple[Memory, ...]:
    """Memory at the peak by kind, for each stage; equal neighbours once."""
    if not plan.stages:
        limit = Cluster.from_dict(plan.cluster).device.memory_bytes
        return (_memory("each device", plan.memory, plan.peak_bytes, plan.peak_bytes, limit),)
    most = max(stage.peak_bytes for stage in plan.stages)
    limits = [device.memory_bytes for device in stage_devices(plan)]
    found = []
    for (_, kinds), same in itertools.groupby(
        enumerate(plan.stages), key=lambda x: (limits[x[0]], tuple(_held(x[1]).items()))
    ):
        stages = [s for s, _ in same]
        name = f"stage{'s' if len(stages) > 1 else ''} {numbers_text(stages)}"
        peak = plan.stages[stages[0]].peak_bytes
        found.append(_memory(name, dict(kinds), peak, most, limits[stages[0]]))
    return tuple(found)


def _held(stage: StageFacts) -> dict[str, int]:
    """Bytes of a stage's devices at the peak, by kind; they add up to its ``peak_bytes``."""
    found = dict(stage.plan.memory)
    found["activation"] = found.get("activation", 0) - stage.spared_bytes
    found["batch"] = found.get("batch", 0) + stage.waiting_bytes
    found["micro-batches in flight"] = (
        stage.in_flight - 1 - stage.pending
    ) * stage.residual_bytes + stage.pending * stage.pending_bytes
    found["for weight programs"] = stage.handed_bytes
    return {kind: n for kind, n in found.items() if n}


def _memory(name: str, kinds: Mapping[str, int], peak: int, most: int, limit: float) -> Memory:
    rest = dict(kinds)
    found = []
    for index, (title, of) in enumerate(KINDS):
        nbytes = sum(rest.pop(kind, 0) for kind in of)
        if nbytes > 0:
            found.append(Kind(title, index, bytes_text(nbytes), nbytes / max(most, 1)))
    other = peak - sum(n for kind, n in kinds.items() if kind not in rest)
    if other > 0:
        found.append(Kind("other", len(KINDS), bytes_text(other), other / max(most, 1)))
    share = "" if math.isinf(limit) else f"{percent_text(peak / limit)} of {bytes_text(limit)}"
    return Memory(name, bytes_text(peak), share, tuple(found))


def choices(plan: PlanFacts) -> tuple[tuple[Choice, ...], str]:
    """The plan and its runners-up, fastest first, each with its step and memory; and what was left out."""
    if plan.stages:
        name = cut_text([(stage.units[1] - stage.units[0], stage.plan.devices) for stage in plan.stages])
        found = [
            _choice(plan, cut_text(r.stages), r.step_s, r.peak_bytes, f"{r.schedule}, {r.microbatches} micro-batches")
            for r in plan.other_pipelines
        ]
        own = f"{plan.schedule}, {plan.microbatches} micro-batches"
    else:
        name = "x".join(map(str, plan.mesh_shape))
        found = [_choice(plan, "x".join(map(str, r.mesh)), r.step_s, r.peak_bytes, r.status) for r in plan.runners_up]
        own = plan.certificate.status
    if not found:
        return (), ""
    shown, rest = head(found, _RUNNERS_UP)
    more = f"and {len(rest)} more, the slowest {seconds_text(max(r.step_s for r in rest))}" if rest else ""
    chosen = Choice(
        name, plan.step_s, seconds_text(plan.step_s), "chosen", plan.peak_bytes, bytes_text(plan.peak_bytes), own, True
    )
    return (chosen, *shown), more


def _choice(plan: PlanFacts, name: str, step_s: float, peak: int | None, proof: str) -> Choice:
    return Choice(
        name,
        step_s,
        seconds_text(step_s),
        slower_text(step_s, plan.step_s),
        peak,
        bytes_text(peak) if peak is not None else "-",
        proof,
        False,
    )
