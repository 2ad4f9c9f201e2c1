"""Seconds to hand an array from one stage to the next: latency + bytes / bandwidth of the level between them.

The price is that of a collective-permute over one level: each device sends to one device of the other stage, and all
of them at the same time. A level's bandwidth is what a device has while every device of its host communicates, so a
stage that leaves the rest of its host silent may be faster than priced. Where transfers were measured over that level,
their line is the price.
"""

from __future__ import annotations

from autopar.cost.collectives import collective_s
from autopar.mesh import TRANSFER, AxisLinks, Crossing, Level, line_for
from autopar.sharding.layout import Collective


def transfer_s(link: Level | None, nbytes: float) -> float:
    """Seconds of one transfer between stages.

    Args:
      link: the level that it crosses (:func:`autopar.mesh.link_between`); None where it stays on its devices.
      nbytes: what the busiest device sends or receives. An array that is split evenly on both sides puts its bytes
        over the number of devices of the smaller side on each of those.

    Returns:
      Seconds; 0 where the array does not move.

    >>> transfer_s(Level("host", 2, latency_s=1e-5, bytes_per_s=1e9), 1e6)
    0.00101
    """
    if link is None:
        return 0.0
    line = line_for(link.measured, TRANSFER, 0)
    if line is not None:
        return line.latency_s + line.s_per_byte * nbytes
    axis = AxisLinks(2, (Crossing(2, link.latency_s, link.bytes_per_s),))
    return collective_s(Collective.PERMUTE, axis, nbytes)
