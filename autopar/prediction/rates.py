"""What devices and links reach of their data sheets, and what collectives take on real wiring.

One constant is the share of every rate on the data sheet (arithmetic, memory, links) that is reached: see
``efficiency.py``. Three things that a hierarchy of links does not tell:

- GPUs reduce over several hosts in rings that visit every device (NCCL): a level carries (n - 1) / n of the bytes of
  every child, not what is left after reducing inside it. With N_{j-1} devices in a child, innermost first:

      reduce-scatter, all-gather   max_j  (n - 1) / n * B / (N_{j-1} * b_j)         all-reduce: twice as much

- A host of 8 V100s is wired as a cube mesh (NVIDIA DGX-1 white paper): of a device's six links, a pair has two and a
  group of four has four. Hosts with NVSwitch lend a device all its links, whoever it talks to.

- On a torus an all-to-all is an exchange with one device after the other: p devices start p - 1 messages, each of which
  pays its level's latency (pairwise exchange: Thakur, Rabenseifner and Gropp 2005). Messages of 16 KB, as experts on
  hundreds of TPUs send, take longer to start than to travel. GPUs start theirs side by side, in one kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autopar.cost import collective_s, transfer_s
from autopar.errors import OptionError
from autopar.mesh import PRESETS, AxisLinks, Cluster, Device, link_between
from autopar.sharding.layout import Collective

_CUBE_MESH = {2: 2 / 6, 4: 4 / 6}
_SWEEPS = {Collective.ALL_REDUCE: 2, Collective.REDUCE_SCATTER: 1, Collective.ALL_GATHER: 1}


def reached(cluster: Cluster, share: float) -> Cluster:
    """The cluster with the rates that are reached: all of the data sheet's times ``share``.

    Raises:
      OptionError: there is no such share.

    >>> reached(Cluster.parse("h100:8"), 0.5).levels[0].bytes_per_s
    225000000000.0
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise OptionError(f"efficiency={share!r} is not the share of a data sheet that is reached; give 0 < share <= 1")
    device = replace(
        cluster.device,
        flops_per_s={dtype: rate * share for dtype, rate in cluster.device.flops_per_s.items()},
        bytes_per_s=cluster.device.bytes_per_s * share,
        efficiency=1.0,
    )
    levels = tuple(replace(level, bytes_per_s=level.bytes_per_s * share) for level in cluster.levels)
    return replace(cluster, device=device, levels=levels)


@dataclass(frozen=True)
class Wiring:
    """How the devices of a cluster are joined, beyond its levels.

    Attributes:
      cluster: at the rates that are reached.
      share: of the data sheet, that is.
    """

    cluster: Cluster
    share: float

    def seconds(self, kind: Collective, axis: AxisLinks, nbytes: float) -> float:
        """Seconds of a collective of ``nbytes`` (see :func:`autopar.cost.collective_s`) over an axis."""
        if is_tpu(self.cluster.device):
            return collective_s(kind, axis, nbytes) + (_starts_s(axis) if kind is Collective.ALL_TO_ALL else 0.0)
        axis = self._wired(axis)
        if kind not in _SWEEPS or len(axis.levels) < 2:
            return collective_s(kind, axis, nbytes)
        devices, children, slowest = axis.size, 1, 0.0
        for level in axis.levels:
            slowest = max(slowest, (devices - 1) / devices / (children * level.bytes_per_s))
            children *= level.size
        return sum(level.latency_s for level in axis.levels) + _SWEEPS[kind] * slowest * nbytes

    def transfer_s(self, source: range, target: range, nbytes: float) -> float:
        """Seconds to hand ``nbytes`` per device from one stage to another.

        Stages smaller than a host leave its network to the devices at the boundary, up to what one device can use. Two
        cores of a chip hand over in its memory.
        """
        link = link_between(self.cluster, source, target)
        inner = self.cluster.levels[0]
        if link is inner and len(source) == len(target) == 1 and self._chip(source) == self._chip(target):
            return nbytes / self.cluster.device.bytes_per_s
        if link is None or link is inner or len(source) >= inner.size:
            return transfer_s(link, nbytes)
        preset = PRESETS.get(self.cluster.device.name)
        most = preset.device_network_bytes_per_s * self.share if preset else link.bytes_per_s
        rate = max(link.bytes_per_s, min(most, link.bytes_per_s * inner.size / len(source)))
        return transfer_s(replace(link, bytes_per_s=rate), nbytes)

    def _chip(self, devices: range) -> int:
        return devices.start // self.cluster.levels[0].sharers

    def _wired(self, axis: AxisLinks) -> AxisLinks:
        if not axis.levels or not self.cluster.device.name.startswith("v100"):
            return axis
        inner = axis.levels[0]
        if inner.bytes_per_s != self.cluster.levels[0].bytes_per_s or inner.size not in _CUBE_MESH:
            return axis
        wired = inner._replace(bytes_per_s=_CUBE_MESH[inner.size] * inner.bytes_per_s)
        return AxisLinks(axis.size, (wired, *axis.levels[1:]))


def _starts_s(axis: AxisLinks) -> float:
    """What starting the messages of an all-to-all takes beyond the one that a collective is charged for.

    >>> from autopar.mesh import Crossing
    >>> _starts_s(AxisLinks(8, (Crossing(4, 1.0, 1.0), Crossing(2, 10.0, 1.0))))
    32.0
    """
    found, inside = 0.0, 1
    for level in axis.levels:
        found += ((level.size - 1) * inside - 1) * level.latency_s
        inside *= level.size
    return found


def is_tpu(device: Device) -> bool:
    """A torus, whose programs XLA compiles as one."""
    return device.name.startswith("tpu")


def inside(axis: AxisLinks, size: int) -> AxisLinks:
    """The first ``size`` devices of an axis: those that share parameters where not all replicas do.

    >>> from autopar.mesh import Crossing
    >>> axis = AxisLinks(8, (Crossing(4, 0.0, 2.0), Crossing(2, 0.0, 1.0)))
    >>> inside(axis, 4).levels == axis.levels[:1], across(axis, 4).levels == axis.levels[1:]
    (True, True)
    """
    return _split(axis, size)[0]


def across(axis: AxisLinks, size: int) -> AxisLinks:
    """One device of each such group."""
    return _split(axis, size)[1]


def _split(axis: AxisLinks, size: int) -> tuple[AxisLinks, AxisLinks]:
    inner, outer, left = [], [], size
    for level in axis.levels:
        taken = math.gcd(level.size, left)
        left //= taken
        inner += [level._replace(size=taken)] if taken > 1 else []
        outer += [level._replace(size=level.size // taken)] if level.size > taken else []
    return AxisLinks(size, tuple(inner)), AxisLinks(axis.size // size, tuple(outer))
