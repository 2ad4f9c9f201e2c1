"""Seconds of one collective over one mesh axis: latency + bytes / bandwidth, level by level.

For ``B`` bytes per device (of the larger of operand and result) and an axis that crosses levels of sizes
``n_1 .. n_k``, bandwidths ``b_1 .. b_k`` per device and latencies ``a_1 .. a_k``, innermost first, with
``N_j = n_1 ... n_j`` and ``n = N_k``:

    reduce-scatter, all-gather   sum_j  a_j + (n_j - 1) / N_j * B / b_j
    all-reduce                   sum_j  a_j + 2 (n_j - 1) / N_j * B / b_j
    all-to-all                   sum_j  a_j  +  max_j (n - N_{j-1}) / n * B / b_j
    collective-permute           max_j  a_j + B / b_j
    slice, fill                  0

The first two are the hierarchical algorithm: reduce-scatter inside a host, then across hosts on the ``1/n_1``
that is left, then gather inside. In an all-to-all, ``(n - N_{j-1}) / n`` is the part of a device's data that
leaves its group through level ``j``; the levels work at the same time and the slowest decides. A permute's
slowest pair decides. On a single level these are the usual ring costs, e.g. ``2 (n-1)/n B/b`` for all-reduce
(Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).

A level's latency is that of one whole collective over it, paid once however many ring steps there are: that is
what microbenchmarks measure and how Alpa's planner counts (Zheng et al., OSDI 2022).
"""

from __future__ import annotations

import functools

from autopar.mesh import AxisLinks, Crossing
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
    if kind in LOCAL or not axis.levels:
        return 0.0, 0.0
    levels = axis.levels
    if kind in _SWEEPS:
        return sum(level.latency_s for level in levels), _SWEEPS[kind] * _sweep(levels)
    if kind is Collective.ALL_TO_ALL:
        return sum(level.latency_s for level in levels), _exchange(levels)
    return max(level.latency_s for level in levels), max(1 / level.bytes_per_s for level in levels)


def _sweep(levels: tuple[Crossing, ...]) -> float:
    """Seconds per byte of a reduce-scatter or all-gather."""
    total, extent = 0.0, 1
    for level in levels:
        extent *= level.size
        total += (level.size - 1) / extent / level.bytes_per_s
    return total


def _exchange(levels: tuple[Crossing, ...]) -> float:
    """Seconds per byte of an all-to-all."""
    extents = [1]
    for level in levels:
        extents.append(extents[-1] * level.size)
    n = extents[-1]
    return max((n - inside) / n / level.bytes_per_s for inside, level in zip(extents, levels, strict=False))
