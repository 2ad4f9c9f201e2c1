"""Seconds of one collective over one mesh axis: latency + bytes / bandwidth, level by level.

For ``B`` bytes per device (of the larger of operand and result) and an axis that crosses levels of sizes
``n_1 .. n_k``, bandwidths ``b_1 .. b_k`` per device and latencies ``a_1 .. a_k``, innermost first, with
``N_j = n_1 ... n_j`` and ``n = N_k``:

    reduce-scatter, all-gather   sum_j  a_j + (n_j - 1) / N_j * B / b_j
    all-reduce                   sum_j  a_j + 2 (n_j - 1) / N_j * B / b_j
    all-to-all                   sum_j  a_j  +  max_j (n - N_{j-1}) / n * d_j * B / b_j
    collective-permute           max_j  a_j + B / b_j
    slice, fill                  0

The first two are the hierarchical algorithm: reduce-scatter inside a host, then across hosts on the ``1/n_1``
that is left, then gather inside. In an all-to-all, ``(n - N_{j-1}) / n`` is the part of a device's data that
leaves its group through level ``j``; the levels work at the same time and the slowest decides. Where a switch joins the
children of a level, ``d_j = 1``. On a torus a message takes every link on the shorter way round its ring: of ``r``
children, ``floor(r^2 / 4)`` links for the messages of one device, where the switch has ``r - 1`` ways, so ``d_j`` is
their quotient, about ``r / 4`` (Austin et al., "How to scale your model", Google DeepMind 2025, part 3: an all-to-all
takes a quarter of an all-gather of the whole array). The other collectives take rings as they are. A permute's
slowest pair decides. On a single level these are the usual ring costs, e.g. ``2 (n-1)/n B/b`` for all-reduce
(Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).

Where a level was calibrated, the line that was measured for the kind and the number of children takes the place of its
two terms, on the bytes that are left for it: ``B / N_{j-1}`` of a sweep, all of them of the others.

A level's latency is that of one whole collective over it, paid once however many ring steps there are: that is
what microbenchmarks measure and how Alpa's planner counts (Zheng et al., OSDI 2022).
"""

from __future__ import annotations

import functools
import itertools
import operator
from typing import NamedTuple

from autopar.mesh import AxisLinks, Crossing, line_for
from autopar.sharding.layout import LOCAL, Collective

_SWEEPS = {Collective.ALL_REDUCE: 2, Collective.REDUCE_SCATTER: 1, Collective.ALL_GATHER: 1}


def collective_s(kind: Collective, axis: AxisLinks, nbytes: float) -> float:
    """Seconds of one collective.

    Args:
      kind: which; local kinds are free.
      axis: the links of the mesh axis that it runs over.
      nbytes: bytes per device of the larger of operand and result: an all-reduce's operand, an all-gather's
        result, a reduce-scatter's operand.

    Returns:
      Seconds, 0 on an axis of size 1.

    >>> link = AxisLinks(4, (Crossing(4, latency_s=1e-5, bytes_per_s=1e9),))
    >>> collective_s(Collective.ALL_REDUCE, link, 1e6)
    0.00151
    """
    latency_s, s_per_byte = collective_line(kind, axis)
    return latency_s + s_per_byte * nbytes


@functools.lru_cache(maxsize=10_000)
def collective_line(kind: Collective, axis: AxisLinks) -> tuple[float, float]:
    """``(latency_s, s_per_byte)``: the cost of a collective as a function of its bytes.

    A permute's cost is a maximum of lines, one per level; the line given is never below it.
    """
    parts = level_parts(kind, axis)
    if kind is Collective.PERMUTE:
        return max((p.latency_s for p in parts), default=0.0), max((p.s_per_byte for p in parts), default=0.0)
    return sum(p.latency_s for p in parts), sum(p.s_per_byte for p in parts if p.decides)


class LevelPart(NamedTuple):
    """What one level of links has to do with a collective.

    Attributes:
      latency_s: its fixed time.
      s_per_byte: its seconds per byte that each device hands to the collective.
      share: of these bytes, how many pass through the level; over 1 for an all-reduce, which moves them twice.
      decides: its seconds per byte count; of levels that work at the same time, those of the slowest alone do.
    """

    latency_s: float
    s_per_byte: float
    share: float
    decides: bool = True


def level_parts(kind: Collective, axis: AxisLinks) -> tuple[LevelPart, ...]:
    """The cost of a collective, level by level, innermost first; nothing for local kinds.

    >>> axis = AxisLinks(8, (Crossing(4, 0.0, 1.0), Crossing(2, 0.0, 1.0)))
    >>> [part.share for part in level_parts(Collective.ALL_GATHER, axis)]
    [0.75, 0.125]
    """
    if kind in LOCAL or not axis.levels:
        return ()
    if kind in _SWEEPS:
        return _sweep(kind, axis.levels)
    exchanges = kind is Collective.ALL_TO_ALL
    shares = _leaving(axis.levels) if exchanges else (1.0,) * len(axis.levels)
    ways = [_detour(level.ring) if exchanges else 1.0 for level in axis.levels]
    lines = [line_for(level.measured, kind.value, level.size) for level in axis.levels]
    each = [
        (level.latency_s, way * share / level.bytes_per_s) if line is None else (line.latency_s, line.s_per_byte)
        for share, way, level, line in zip(shares, ways, axis.levels, lines, strict=True)
    ]
    slowest = max(range(len(each)), key=lambda i: each[i][1])
    return tuple(
        LevelPart(*cost, share, i == slowest) for i, (cost, share) in enumerate(zip(each, shares, strict=True))
    )


def _sweep(kind: Collective, levels: tuple[Crossing, ...]) -> tuple[LevelPart, ...]:
    """A reduce-scatter or all-gather, or one after the other."""
    found, extent, times = [], 1, _SWEEPS[kind]
    for level in levels:
        left = 1 / extent  # of the bytes, after the levels inside
        extent *= level.size
        share = (level.size - 1) / extent
        line = line_for(level.measured, kind.value, level.size)
        if line is None:
            found.append(LevelPart(level.latency_s, times * (share / level.bytes_per_s), times * share))
        else:
            found.append(LevelPart(line.latency_s, left * line.s_per_byte, times * share))
    return tuple(found)


def _leaving(levels: tuple[Crossing, ...]) -> tuple[float, ...]:
    """For each level, the part of a device's data that leaves its group through it in an all-to-all."""
    extents = list(itertools.accumulate((level.size for level in levels), operator.mul, initial=1))
    return tuple((extents[-1] - inside) / extents[-1] for inside in extents[:-1])


def _detour(ring: int) -> float:
    """How much longer an all-to-all takes over a ring used both ways than over a switch of the same bandwidth.

    >>> _detour(0), _detour(4), _detour(16)
    (1.0, 1.3333333333333333, 4.266666666666667)
    """
    return (ring**2 // 4) / (ring - 1) if ring > 2 else 1.0
