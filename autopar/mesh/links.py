"""Links: the levels of a cluster's hierarchy, and the part of it that a mesh axis crosses."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autopar.errors import ClusterError
from autopar.mesh.measured import CollectiveLine, line_for


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the link hierarchy.

    Attributes:
      name: what the links join: ``device`` (devices in a host), ``host``, ``pod``, ``site``.
      size: number of children joined at this level.
      latency_s: fixed time of one collective over this level, whatever its size.
      bytes_per_s: bandwidth per direction that each *device* has through this level while all of them
        communicate: for hosts, the host's network bandwidth divided by its devices.
      measured: what collectives over it take, in place of what the two numbers say.
      torus: number of dimensions of a torus by which they are joined, each to its neighbours, ``bytes_per_s`` being
        that of one ring used both ways; 0 where a switch joins all with all.
      sharers: devices at each node of the torus, which share its links.
    """

    name: str
    size: int
    latency_s: float
    bytes_per_s: float
    measured: tuple[CollectiveLine, ...] = ()
    torus: int = 0
    sharers: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ClusterError(f"level {self.name!r} joins {self.size} children; it must be 1 or more")
        if not 0 <= self.latency_s < math.inf:
            raise ClusterError(f"level {self.name!r} has latency_s = {self.latency_s}; it must be 0 or more")
        if not self.bytes_per_s > 0:
            raise ClusterError(f"level {self.name!r} has bytes_per_s = {self.bytes_per_s}; it must be positive")
        if self.torus < 0:
            raise ClusterError(f"level {self.name!r} is a torus of {self.torus} dimensions; it must be 0 or more")
        if self.sharers < 1:
            raise ClusterError(f"level {self.name!r} has {self.sharers} sharers of each link; it must be 1 or more")

    @property
    def side(self) -> int:
        """Nodes around one ring of the torus, taken to be a cube; 0 where there is none.

        >>> Level("device", 256, 0.0, 1.0, torus=2).side, Level("device", 4096, 0.0, 1.0, torus=3).side
        (16, 16)
        """
        return math.ceil((self.size / self.sharers) ** (1 / self.torus) - 1e-9) if self.torus else 0

    def ring(self, children: int, stride: int) -> int:
        """Nodes around the longest ring that an axis takes; 0 where there is no torus.

        Args:
          children: how many of the level's the axis joins.
          stride: how many device ids apart they are.

        >>> level = Level("device", 2048, 0.0, 1.0, torus=2, sharers=2)
        >>> level.side, level.ring(2048, 1), level.ring(16, 1), level.ring(16, 128)
        (32, 32, 8, 16)
        """
        return min(children if stride >= self.sharers else math.ceil(children / self.sharers), self.side)


@dataclass(frozen=True, slots=True)
class Joint:
    """What joins two islands, of several that are not all joined alike.

    Attributes:
      first, second: numbers of the islands, the lower first.
      latency_s: fixed time of a transfer from one to the other.
      bytes_per_s: bandwidth per direction that each device has between them while all of them communicate.
    """

    first: int
    second: int
    latency_s: float
    bytes_per_s: float

    def __post_init__(self):
        self.level(2)  # refuses what no link can be

    def level(self, islands: int) -> Level:
        """As a level of links of a cluster of so many islands."""
        return Level("island", islands, self.latency_s, self.bytes_per_s)


def joining(
    links: Sequence[Level | Joint],
    latency_s: float | None = None,
    bytes_per_s: float | None = None,
    *,
    islands: int | None = None,
) -> Level:
    """The level that joins islands, each of which has one of these links to the outside.

    Where no number is given, it is that of the slowest of them: the highest latency, the lowest bandwidth. ``islands``
    is their number where that is not the number of links.

    >>> joining([Level("host", 4, 1e-5, 1e9), Level("host", 2, 2e-5, 4e9)]).latency_s
    2e-05
    """
    return Level(
        "island",
        len(links) if islands is None else islands,
        max(link.latency_s for link in links) if latency_s is None else latency_s,
        min(link.bytes_per_s for link in links) if bytes_per_s is None else bytes_per_s,
    )


class Crossing(NamedTuple):
    """The part of a mesh axis that lies on one level of links.

    Attributes:
      size: number of children of that level that the axis joins, over 1.
      latency_s: fixed time of one collective over the level.
      bytes_per_s: bandwidth per device and direction through the level.
      measured: what collectives over so many children take, where that was measured.
      ring: of a torus, nodes around the longest ring that the axis takes; 0 where a switch joins them.
    """

    size: int
    latency_s: float
    bytes_per_s: float
    measured: tuple[CollectiveLine, ...] = ()
    ring: int = 0


class AxisLinks(NamedTuple):
    """One axis of a logical mesh.

    Attributes:
      size: number of devices along the axis.
      levels: the levels that it crosses, innermost first; empty for size 1. Their sizes multiply to ``size``
        where mesh and levels align, and to more (a pessimistic price) where they do not.
    """

    size: int
    levels: tuple[Crossing, ...]


@functools.lru_cache(maxsize=10_000)
def axis_links(levels: tuple[Level, ...], size: int, stride: int) -> AxisLinks:
    """The levels that an axis of ``size`` devices, ``stride`` device ids apart, crosses.

    Args:
      levels: every level of the cluster, innermost first.
      size: devices along the axis.
      stride: product of the sizes of the inner axes.

    >>> levels = Level("device", 8, 1e-6, 1e9), Level("host", 2, 1e-5, 1e8)
    >>> [level.size for level in axis_links(levels, 4, 4).levels]
    [2, 2]
    """
    crossed = children_crossed(tuple(level.size for level in levels), size, stride)
    found = []
    for n, level in zip(crossed, levels, strict=True):
        if n > 1:
            lines = (line_for(level.measured, kind, n) for kind in sorted({line.kind for line in level.measured}))
            known = tuple(line for line in lines if line is not None)
            found.append(Crossing(n, level.latency_s, level.bytes_per_s, known, level.ring(n, stride)))
    return AxisLinks(size, tuple(found))


def children_crossed(sizes: tuple[int, ...], size: int, stride: int) -> tuple[int, ...]:
    """For each level, how many of its children an axis joins; 1 where it does not cross the level.

    Args:
      sizes: of the levels, innermost first.
      size: devices along the axis.
      stride: product of the sizes of the inner axes.

    >>> children_crossed((8, 2), 2, 8), children_crossed((8, 2), 16, 1)
    ((1, 2), (8, 2))
    """
    found, inner = [], 1
    for children in sizes:
        found.append(_crossed(math.prod(sizes), size, stride, inner, inner * children))
        inner *= children
    return tuple(found)


def _crossed(devices: int, size: int, stride: int, inner: int, outer: int) -> int:
    """Children (blocks of ``inner`` ids) of one parent (block of ``outer``) on one line of the axis, at most.

    Where blocks and strides divide each other, every line is alike and the count is an overlap of intervals;
    else the lines are walked.
    """
    span = size * stride
    if all(a % b == 0 or b % a == 0 for a in (stride, span) for b in (inner, outer)):
        low, high = max(stride, inner), min(span, outer)
        return max(1, high // low)
    lines = (start + offset for start in range(0, devices, span) for offset in range(stride))
    return max(_most_children(range(base, base + span, stride), inner, outer) for base in lines)


def _most_children(ids: range, inner: int, outer: int) -> int:
    children: dict[int, set[int]] = {}
    for i in ids:
        children.setdefault(i // outer, set()).add(i // inner)
    return max(len(blocks) for blocks in children.values())
