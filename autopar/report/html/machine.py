"""The cluster as the page draws it: boxes of devices, which stage is on which, and what crosses the links."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autopar.mesh import Cluster, Device
from autopar.plan import PlanFacts
from autopar.report.common import percent_text
from autopar.report.links import Link, Traffic, link_text, link_traffic, whole_s, without_s
from autopar.report.parts import head
from autopar.report.pipeline import range_text
from autopar.units import bytes_text, rate_text, seconds_text

_CELLS = 256  # devices that are drawn one by one
_BOXES = 64  # boxes side by side
_LABELLED = 64  # devices that say which they are
_CROSSINGS = 8  # reasons that a table lists for each link
_SAID = 4  # reasons for which a link is crossed, where there is little room


@dataclass(frozen=True)
class Cell:
    """A device, or several where there are too many to draw.

    Attributes:
      devices: ids, first and one past the last.
      stages: that are on it; empty of what is idle.
      at: its place on the mesh of its stage, a number for each axis; empty of several devices.
      label: what is written on it.
      tip: what it is.
      idle: the plan has nothing for it to do.
    """

    devices: tuple[int, int]
    stages: tuple[int, ...]
    at: tuple[int, ...]
    label: str
    tip: str
    idle: bool = False


@dataclass(frozen=True)
class Box:
    """What one level of links joins.

    Attributes:
      title: ``host 3``.
      link: which link joins what it holds, as a number among the page's links; -1 where nothing crosses it.
      boxes: that it holds.
      cells: that it holds, of the innermost.
      more: what is not drawn.
    """

    title: str
    link: int
    boxes: tuple[Box, ...] = ()
    cells: tuple[Cell, ...] = ()
    more: str = ""


@dataclass(frozen=True)
class Crossing:
    """What crosses a link for one reason: per device and step, of the busiest stage."""

    use: str
    why: str
    count: int
    bytes: str
    seconds: str
    share: float


@dataclass(frozen=True)
class Road:
    """A kind of link.

    Attributes:
      name: ``host to host``.
      rate: what it carries.
      adds: what it adds to the step.
      weight: how long what crosses it takes, as a share of the longest of all links.
      crossings: what crosses it, longest first.
      more: what is left out.
      tip: all that in words.
    """

    name: str
    rate: str
    adds: str
    weight: float
    crossings: tuple[Crossing, ...]
    more: str
    tip: str


@dataclass(frozen=True)
class Machine:
    """The cluster, its links and what they are for."""

    title: str
    note: str
    staged: bool
    roads: tuple[Road, ...]
    top: Box


def machine(plan: PlanFacts) -> Machine:
    """The cluster of a plan, with what the plan does on it."""
    cluster = Cluster.from_dict(plan.cluster)
    traffic = link_traffic(plan)
    links = list(dict.fromkeys(t.link for t in traffic))
    drawn = _Drawing(plan, cluster, links)
    step_s = whole_s(plan) if plan.stages else plan.step_s
    roads = tuple(_road(plan, cluster, link, traffic, step_s) for link in links)
    return Machine(cluster.name, drawn.note, bool(plan.stages), roads, drawn.top())


def _road(plan: PlanFacts, cluster: Cluster, link: Link, traffic: Sequence[Traffic], step_s: float) -> Road:
    longest_s = max(t.seconds for t in traffic) or 1.0
    own, rest = head(_alike([t for t in traffic if t.link == link]), _CROSSINGS)
    adds_s = without_s(plan, link, step_s)
    adds = f"{seconds_text(adds_s)} ({percent_text(adds_s / plan.step_s if plan.step_s else 0.0)})"
    level = cluster.joint(link[0], link[2]) if link[1] < 0 else cluster.islands[link[0]].levels[link[1]]
    rate = f"{rate_text(level.bytes_per_s, 'B/s')} per device each way, latency {seconds_text(level.latency_s)}"
    name = link_text(cluster, link)
    crossings = tuple(
        Crossing(t.use, t.why, t.count, bytes_text(t.bytes), seconds_text(t.seconds), t.seconds / longest_s)
        for t in own
    )
    said = [f"{c.use or 'other'}, {c.why}: {c.bytes} in {c.seconds}" for c in crossings[:_SAID]]
    said += [f"and {len(crossings) - _SAID} more"] if len(crossings) > _SAID else []
    tip = "\n".join([f"{name}: {rate}", *said, f"adds {adds} to the step"])
    more = f"and {len(rest)} more: {seconds_text(sum(t.seconds for t in rest))}" if rest else ""
    return Road(name, rate, adds, max(c.share for c in crossings), crossings, more, tip)


def _alike(traffic: Sequence[Traffic]) -> list[Traffic]:
    """What goes between stages in equal amounts said once."""
    groups: dict[tuple[object, ...], list[Traffic]] = {}
    for t in traffic:
        key = (t.count, bytes_text(t.bytes), seconds_text(t.seconds)) if t.use == "pipeline" else (t.use, t.why)
        groups.setdefault(key, []).append(t)
    return [
        found[0] if len(found) == 1 else replace(found[0], why=f"{found[0].why} and {len(found) - 1} alike")
        for found in groups.values()
    ]


class _Drawing:
    """Boxes and cells of a cluster."""

    def __init__(self, plan: PlanFacts, cluster: Cluster, links: Sequence[Link]):
        self._plan, self._cluster, self._links = plan, cluster, list(links)
        self._block = 1 if cluster.devices <= _CELLS else 2 ** math.ceil(math.log2(cluster.devices / _CELLS))
        self.note = "" if self._block == 1 else f"Each square is up to {self._block} devices."

    def top(self) -> Box:
        """The whole cluster."""
        ids = self._cluster.island_ids
        boxes = [self._island(i, ids[i]) for i in range(len(ids))]
        if len(boxes) == 1:
            return boxes[0]
        joined = next((k for k, link in enumerate(self._links) if link[1] < 0), -1)
        return Box(self._cluster.name, joined, tuple(boxes))

    def _island(self, island: int, ids: range) -> Box:
        found = self._cluster.islands[island]
        return self._box(island, len(found.levels) - 1, ids, found.name, found.device)

    def _box(self, island: int, level: int, ids: range, title: str, device: Device) -> Box:
        levels = self._cluster.islands[island].levels
        link = (island, level)
        crossed = self._links.index(link) if link in self._links else -1
        if level == 0:
            return Box(title, crossed, (), tuple(self._cells(ids, device)))
        step = len(ids) // levels[level].size
        starts = range(ids.start, ids.stop, step)
        shown = starts[:_BOXES] if len(starts) > _BOXES + 1 else starts
        name = levels[level].name
        boxes = tuple(
            self._box(island, level - 1, range(start, start + step), f"{name} {k}", device)
            for k, start in enumerate(shown)
        )
        rest = len(starts) - len(shown)
        return Box(title, crossed, boxes, (), f"and {rest} more of {step} devices each" if rest else "")

    def _cells(self, ids: range, device: Device) -> Iterator[Cell]:
        for start in range(ids.start, ids.stop, self._block):
            yield self._cell(start, min(start + self._block, ids.stop), device)

    def _cell(self, start: int, stop: int, device: Device) -> Cell:
        here = f"device{'s' if stop - start > 1 else ''} {range_text((start, stop))}: {device.name}"
        plan = self._plan
        if not plan.stages:
            at = _place(plan, start) if stop - start == 1 else ()
            held = f"holds {bytes_text(plan.peak_bytes)} at its peak"
            label = str(start) if self._cluster.devices <= _LABELLED else ""
            return Cell((start, stop), (), at, label, "\n".join([here, *_place_text(plan, at), held]))
        stages = tuple(s for s, x in enumerate(plan.stages) if x.devices[0] < stop and start < x.devices[1])
        if not stages:
            return Cell((start, stop), (), (), "", f"{here}\nidle: no stage is here", idle=True)
        first = plan.stages[stages[0]]
        at = _place(first.plan, start - first.devices[0]) if stop - start == 1 else ()
        peak = sum(plan.stages[s].peak_bytes for s in stages if plan.stages[s].devices == first.devices)
        said = f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"
        lines = [here, said, *_place_text(first.plan, at), f"holds {bytes_text(peak)} at its peak"]
        return Cell((start, stop), stages, at, ",".join(map(str, stages[:2])), "\n".join(lines))


def _place(plan: PlanFacts, device: int) -> tuple[int, ...]:
    """Where a device is on the mesh: the last axis varies fastest."""
    found = []
    for size in reversed(plan.mesh_shape):
        found.append(device % size)
        device //= size
    return tuple(reversed(found))


def _place_text(plan: PlanFacts, at: Sequence[int]) -> list[str]:
    said = [f"{axis.name} = {i}" for axis, i in zip(plan.mesh, at, strict=False) if axis.size > 1]
    return [f"on the mesh at {', '.join(said)}"] if said else []
