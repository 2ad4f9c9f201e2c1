"""What crosses each link of a cluster, why, and how much longer the step is for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from autopar.cost import level_parts, transfer_s
from autopar.mesh import Cluster, children_crossed, link_between
from autopar.plan import CollectiveRecord, PlanFacts, StageFacts
from autopar.report.common import cause_text, percent_text
from autopar.report.parts import Column, Lines, Section, Table, head
from autopar.report.words import axis_words
from autopar.sharding.layout import Collective
from autopar.simulate import simulate_plan
from autopar.units import bytes_text, seconds_text

_ROWS = 5
_PIPELINE = "pipeline"

Link = tuple[int, ...]
"""A level of an island, as (island, level); or what joins two islands, as (first, -1, second)."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What crosses a link for one reason. Amounts are per device and step, of the stage that has most.

    Attributes:
      link: which.
      use: what it is for: ``data parallel``, ``tensor parallel``, ``pipeline``.
      why: what happens: ``sum in update``.
      count: collectives or messages.
      bytes: that pass through the link.
      seconds: that they take.
    """

    link: Link
    use: str
    why: str
    count: int
    bytes: float
    seconds: float


def link_traffic(plan: PlanFacts) -> tuple[Traffic, ...]:
    """Everything that crosses a link, the outermost link first, what takes longest first."""
    found: dict[tuple[Link, str, str], Traffic] = {}
    for traffic in _all(plan):
        key = (traffic.link, traffic.use, traffic.why)
        if key not in found or traffic.seconds > found[key].seconds:
            found[key] = traffic
    return tuple(sorted(found.values(), key=lambda t: (-_height(t.link), t.link, -t.seconds)))


def _height(link: Link) -> float:
    return math.inf if link[1] < 0 else link[1]


def _all(plan: PlanFacts) -> Iterator[Traffic]:
    if not plan.stages:
        yield from _inside(plan, plan.collectives, 0, axis_words(plan))
        return
    cluster = Cluster.from_dict(plan.cluster)
    for stage in plan.stages:
        island = cluster.island_at(stage.devices[0])
        yield from _inside(stage.plan, stage.collectives, island, axis_words(stage.plan))
    for s, (a, b) in enumerate(zip(plan.stages, plan.stages[1:], strict=False)):
        link = _link_of(cluster, a, b)
        if link is None:
            continue
        level = link_between(cluster, range(*a.devices), range(*b.devices))
        messages = [n / min(a.plan.devices, b.plan.devices) for n in (a.sends_bytes, b.returns_bytes) if n]
        nbytes, seconds = sum(messages), sum(transfer_s(level, n) for n in messages)
        count = plan.microbatches * len(messages)
        why = f"stage {s} <-> {s + 1}" if len(messages) > 1 else f"stage {s} -> {s + 1}"
        yield Traffic(link, _PIPELINE, why, count, plan.microbatches * nbytes, plan.microbatches * seconds)


def _link_of(cluster: Cluster, a: StageFacts, b: StageFacts) -> Link | None:
    """The link that messages between two stages cross."""
    islands = sorted(cluster.island_at(stage.devices[0]) for stage in (a, b))
    if islands[0] != islands[1]:
        return (islands[0], -1, islands[1])
    crossed = link_between(cluster, range(*a.devices), range(*b.devices))
    levels = cluster.islands[islands[0]].levels
    return next(((islands[0], i) for i, level in enumerate(levels) if level is crossed), None)


def _inside(
    plan: PlanFacts, records: tuple[CollectiveRecord, ...], island: int, words: Mapping[str, str]
) -> Iterator[Traffic]:
    """What collectives of one program send through each level, equal reasons together."""
    groups: dict[tuple[int, str, str], list[tuple[int, float, float]]] = {}
    for c in records:
        use, why = words.get(c.axes[0], ""), f"{cause_text(c.cause)} in {c.phase}"
        for level, nbytes, seconds in level_amounts(plan, c):
            groups.setdefault((level, use, why), []).append((c.count, nbytes, seconds))
    for (level, use, why), amounts in groups.items():
        count, nbytes, seconds = (sum(of) for of in zip(*amounts, strict=True))
        yield Traffic((island, level), use, why, round(count), nbytes, seconds)


def level_amounts(plan: PlanFacts, c: CollectiveRecord) -> list[tuple[int, float, float]]:
    """Level, bytes per device and step, and seconds per step of a collective, for each level that it crosses."""
    at = plan.axis_names.index(c.axes[0])
    cluster = Cluster.from_dict(plan.cluster)
    axis = cluster.mesh(plan.mesh_shape).axes[at]
    sizes, stride = tuple(level.size for level in cluster.levels), math.prod(plan.mesh_shape[at + 1 :])
    levels = [i for i, n in enumerate(children_crossed(sizes, axis.size, stride)) if n > 1]
    parts = level_parts(Collective(c.kind), axis)
    weights = [part.latency_s + part.decides * part.s_per_byte * c.bytes for part in parts]
    total = sum(weights) or 1.0
    return [
        (level, c.count * c.bytes * part.share, c.seconds * weight / total)
        for level, part, weight in zip(levels, parts, weights, strict=True)
    ]


def without_s(plan: PlanFacts, link: Link, step_s: float | None = None) -> float:
    """Seconds by which the step would be shorter if a link took no time, the plan being the same.

    Args:
      plan: any.
      link: one that is crossed.
      step_s: how long the step is as it is (:func:`whole_s`), for those who ask of many links.
    """
    if not plan.stages:
        return sum(s for c in plan.collectives for level, _, s in level_amounts(plan, c) if level == link[1])
    stages = tuple(_relieved(plan, stage, link) for stage in plan.stages)
    free = dataclasses.replace(plan, stages=stages, cluster=_freed(Cluster.from_dict(plan.cluster), link).to_dict())
    return max((whole_s(plan) if step_s is None else step_s) - whole_s(free), 0.0)


def whole_s(plan: PlanFacts) -> float:
    """Seconds of a step of several stages, simulated."""
    return simulate_plan(plan).step_s + max(stage.once_s for stage in plan.stages)


def _relieved(plan: PlanFacts, stage: StageFacts, link: Link) -> StageFacts:
    """A stage whose collectives spend no time on a link."""
    island = Cluster.from_dict(plan.cluster).island_at(stage.devices[0])
    if link[0] != island or link[1] < 0:
        return stage
    spent = dict.fromkeys(("forward", "backward", "update"), 0.0)
    for phase, records in (("", stage.plan.collectives), ("backward", stage.again)):
        for c in records:
            spent[phase or c.phase] += sum(s for level, _, s in level_amounts(stage.plan, c) if level == link[1])
    return dataclasses.replace(
        stage,
        forward_s=max(stage.forward_s - spent["forward"] / plan.microbatches, 0.0),
        backward_s=max(stage.backward_s - spent["backward"] / plan.microbatches, 0.0),
        once_s=max(stage.once_s - spent["update"], 0.0),
    )


def _freed(cluster: Cluster, link: Link) -> Cluster:
    """A cluster of which one link takes no time."""
    if link[1] < 0:
        cut = (link[0], link[2])
        return cluster.with_joints(
            [
                dataclasses.replace(joint, latency_s=0.0, bytes_per_s=math.inf)
                if (joint.first, joint.second) == cut
                else joint
                for joint in cluster.every_joint
            ]
        )
    island = cluster.islands[link[0]]
    free = dataclasses.replace(island.levels[link[1]], latency_s=0.0, bytes_per_s=math.inf)
    island = dataclasses.replace(island, levels=(*island.levels[: link[1]], free, *island.levels[link[1] + 1 :]))
    if not cluster.members:
        return island
    members = (*cluster.members[: link[0]], island, *cluster.members[link[0] + 1 :])
    return dataclasses.replace(cluster, members=members)


def bottleneck(plan: PlanFacts) -> tuple[Link, float] | None:
    """The link that adds most to the step, and by how many seconds; None where nothing is communicated.

    Returns:
      The link, and :func:`without_s` of it.
    """
    links = dict.fromkeys(t.link for t in link_traffic(plan))
    return max(((link, without_s(plan, link)) for link in links), key=lambda found: found[1], default=None)


def bottleneck_text(plan: PlanFacts) -> str:
    """The bottleneck in words: which link, what it adds, and for what."""
    found = bottleneck(plan)
    if found is None:
        return "Nothing is communicated."
    link, adds_s = found
    cluster = Cluster.from_dict(plan.cluster)
    reasons = [t for t in link_traffic(plan) if t.link == link]
    most = max(reasons, key=lambda t: t.seconds)
    share = f" ({percent_text(adds_s / plan.step_s)})" if plan.step_s else ""
    use = f" for {most.use}" if most.use else ""
    return (
        f"The bottleneck is {link_text(cluster, link)}: it adds {seconds_text(adds_s)} to the step{share}, most of it "
        f"{most.why}{use}, {bytes_text(most.bytes)} in {most.count:,} transfer{'s' if most.count > 1 else ''}."
    )


def link_sections(plan: PlanFacts) -> tuple[Section, ...]:
    """What crosses each link, and what that costs; nothing where all devices are joined alike.

    What stays on the innermost links is said elsewhere, as communication; here only what it costs.
    """
    cluster = Cluster.from_dict(plan.cluster)
    if len(cluster.islands) == 1 and len(cluster.levels) == 1:
        return ()
    traffic = link_traffic(plan)
    if not traffic:
        return (Section("What crosses each link", (Lines(("nothing",)),)),)
    shown, rest = head(_alike(t for t in traffic if t.link[1]), _ROWS)
    rows = tuple(
        (link_text(cluster, t.link), t.use, t.why, f"{t.count:,}", bytes_text(t.bytes), seconds_text(t.seconds))
        for t in shown
    )
    columns = (
        Column("link"), Column("for", narrowest=10), Column("what", narrowest=14),
        *(Column(title, right=True) for title in ("count", "bytes", "time")),
    )  # fmt: skip
    more = f"and {len(rest)} more: {seconds_text(sum(t.seconds for t in rest))}" if rest else ""
    title = "What crosses each link, per device and step" + (", of the busiest stage" if len(plan.stages) > 1 else "")
    costs = Lines(_costs(plan, cluster, traffic))
    return (Section(title, (Table(columns, rows, more), costs) if rows else (costs,)),)


def _alike(traffic: Iterable[Traffic]) -> list[Traffic]:
    """Equal traffic between stages said once."""
    groups: dict[tuple[Link, str, int, str, str, str], list[Traffic]] = {}
    for t in traffic:
        alike = "" if t.use == _PIPELINE else t.why
        groups.setdefault((t.link, t.use, t.count, bytes_text(t.bytes), seconds_text(t.seconds), alike), []).append(t)
    return [
        found[0] if len(found) == 1 else dataclasses.replace(found[0], why=f"{found[0].why} ({len(found)} alike)")
        for found in groups.values()
    ]


def _costs(plan: PlanFacts, cluster: Cluster, traffic: tuple[Traffic, ...]) -> tuple[str, ...]:
    """What each link adds to the step; the outermost first."""
    found = []
    step_s = whole_s(plan) if plan.stages else plan.step_s
    for link in dict.fromkeys(t.link for t in traffic):
        adds_s = without_s(plan, link, step_s)
        share = f" ({percent_text(adds_s / plan.step_s)})" if plan.step_s else ""
        found.append(f"{link_text(cluster, link)} adds {seconds_text(adds_s)} to the step{share}")
    return tuple(found)


def link_text(cluster: Cluster, link: Link) -> str:
    """A link in words.

    >>> link_text(Cluster.parse("h100:2x8"), (0, 1)), link_text(Cluster.parse("cpu:4+cpu:2"), (0, -1, 1))
    ('host to host', 'cpu:4 to cpu:2')
    """
    if link[1] < 0:
        return f"{cluster.islands[link[0]].name} to {cluster.islands[link[2]].name}"
    name = cluster.islands[link[0]].levels[link[1]].name
    return f"{name} to {name}" + (f" of {cluster.islands[link[0]].name}" if cluster.members else "")


__all__ = [
    "Link",
    "Traffic",
    "bottleneck",
    "bottleneck_text",
    "level_amounts",
    "link_sections",
    "link_text",
    "link_traffic",
    "whole_s",
    "without_s",
]
