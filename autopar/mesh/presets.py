"""Known devices and the text that names clusters of them.

Every number is a data-sheet or paper value with its source, except two kinds that no data sheet has:
latencies and overheads (typical of small NCCL, Gloo or ICI collectives and of kernel launches, to one figure),
and ``efficiency`` (a round figure for the share of peak that large matmuls reach). Calibration replaces both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.errors import ClusterError, nearest
from autopar.mesh.device import Device
from autopar.mesh.links import Level
from autopar.mesh.wide_area import LINKS
from autopar.units import GIB, GIGA, MICRO, TERA, gbit_per_s


@dataclass(frozen=True)
class Preset:
    """A device and the links that a cluster of it has.

    Attributes:
      device: one device.
      inner_latency_s, inner_bytes_per_s: links between devices of one group: NVLink in a host, ICI in a pod.
      group: what the network joins: ``host``, or ``pod`` for TPUs.
      group_size: most devices in one group; None if there is no limit.
      network_latency_s: fixed time of a collective over the network between groups.
      network_bytes_per_s: network bandwidth of a whole group, per direction.
      device_network_bytes_per_s: most of it that a single device can use.
      torus: dimensions of the torus that the links between devices of one group form; 0 if a switch joins them.
      sharers: devices at each node of that torus: the cores of a chip.
    """

    device: Device
    inner_latency_s: float
    inner_bytes_per_s: float
    group: str
    group_size: int | None
    network_latency_s: float
    network_bytes_per_s: float
    device_network_bytes_per_s: float
    torus: int = 0
    sharers: int = 1

    def levels(self, groups: int, devices: int) -> tuple[Level, ...]:
        """Levels of ``groups`` groups of ``devices`` devices; one group has no network."""
        inner = Level(
            "device", devices, self.inner_latency_s, self.inner_bytes_per_s, torus=self.torus, sharers=self.sharers
        )
        return (inner,) if groups == 1 else (inner, self.network(groups, devices))

    def network(self, groups: int, devices: int) -> Level:
        """What joins groups of ``devices`` devices, which share it."""
        share = min(self.network_bytes_per_s / devices, self.device_network_bytes_per_s)
        return Level(self.group, groups, self.network_latency_s, share)


def _gpu(device: Device, nvlink_bytes_per_s: float, nics: int, nic_gbit_per_s: float, latency_s: float) -> Preset:
    nic = gbit_per_s(nic_gbit_per_s)
    return Preset(device, 10 * MICRO, nvlink_bytes_per_s, "host", 8, latency_s, nics * nic, nic)


def _tpu(
    device: Device, ici_bytes_per_s: float, pod_size: int, dcn_device_bytes_per_s: float, torus: int, cores: int = 1
) -> Preset:
    dcn = dcn_device_bytes_per_s
    return Preset(device, 5 * MICRO, ici_bytes_per_s, "pod", pod_size, 100 * MICRO, pod_size * dcn, dcn, torus, cores)


def _v100(name: str, memory_gib: int) -> Preset:
    source = (
        "NVIDIA V100 SXM2 data sheet; NVLink 2: 6 x 25 GB/s per direction; 25 Gbit/s network per 8-GPU host "
        "(AWS p3.16xlarge, the cluster of Alpa, OSDI 2022); bfloat16 has no tensor cores and runs as float32"
    )
    rates = {"float16": 125 * TERA, "bfloat16": 15.7 * TERA, "float32": 15.7 * TERA, "float64": 7.8 * TERA}
    device = Device(name, rates, 900 * GIGA, memory_gib * GIB, 4 * MICRO, source, efficiency=0.7)
    return _gpu(device, 150 * GIGA, 1, 25, 50 * MICRO)


def _hopper(name: str, bytes_per_s: float, memory_bytes: float, source: str) -> Preset:
    rates = {
        "float8": 1979 * TERA,
        "int8": 1979 * TERA,
        "bfloat16": 989.4 * TERA,
        "tf32": 494.7 * TERA,
        "float32": 67 * TERA,
        "float64": 67 * TERA,
    }
    source += "; dense tensor-core rates; NVLink 4: 450 GB/s per direction; 8 x 400 Gbit/s NDR InfiniBand per host"
    device = Device(name, rates, bytes_per_s, memory_bytes, 4 * MICRO, source, efficiency=0.7)
    return _gpu(device, 450 * GIGA, 8, 400, 20 * MICRO)


_CPU = Device(
    "cpu",
    {"float32": 10 * GIGA, "bfloat16": 5 * GIGA, "float64": 5 * GIGA},
    5 * GIGA,
    2 * GIB,
    10 * MICRO,
    "order of magnitude of one of several virtual devices on a 2-core host; calibrate for better",
)
_P100 = Device(
    "p100-16gb",
    {"float16": 18.7 * TERA, "bfloat16": 9.3 * TERA, "float32": 9.3 * TERA, "float64": 4.7 * TERA},
    732 * GIGA,
    16 * GIB,
    4 * MICRO,
    "NVIDIA P100 PCIe data sheet; PCIe 3.0 x16, 16 GB/s per direction, and no NVLink; 25 Gbit/s network per 8-GPU host "
    "assumed",
    efficiency=0.7,
)
_A100 = Device(
    "a100-80gb",
    {
        "int8": 624 * TERA,
        "bfloat16": 312 * TERA,
        "tf32": 156 * TERA,
        "float32": 19.5 * TERA,
        "float64": 19.5 * TERA,
    },
    2039 * GIGA,
    80 * GIGA,
    4 * MICRO,
    "NVIDIA A100 80GB SXM data sheet, dense tensor-core rates; NVLink 3: 300 GB/s per direction; "
    "8 x 200 Gbit/s HDR InfiniBand per host (DGX A100)",
    efficiency=0.75,
)

# TPU matmuls of float32 operands run as one bfloat16 pass at jax's default precision: hence equal rates. The ICI
# bandwidth of a mesh axis is that of one torus ring used both ways: two links, one direction each.
_TPU_V3 = Device(
    "tpu-v3",
    {"bfloat16": 61.5 * TERA, "float32": 61.5 * TERA},
    450 * GIGA,
    16 * GIB,
    2 * MICRO,
    "Cloud TPU v3 documentation, per core (half a chip: 123 TFLOP/s, 32 GiB, 900 GB/s); ICI 4 x 70 GB/s links per "
    "chip (Jouppi et al., ISCA 2023, table 4), a ring shared by two cores; network 100 Gbit/s per 8 cores assumed",
    efficiency=0.8,
)
_TPU_V4 = Device(
    "tpu-v4",
    {"bfloat16": 275 * TERA, "float32": 275 * TERA, "int8": 275 * TERA},
    1200 * GIGA,
    32 * GIB,
    2 * MICRO,
    "Cloud TPU v4 documentation; ICI 6 x 50 GB/s links per chip (Jouppi et al., ISCA 2023, table 4); "
    "network 50 Gbit/s per chip, as v5p",
    efficiency=0.8,
)
_TPU_V5E = Device(
    "tpu-v5e",
    {"bfloat16": 197 * TERA, "float32": 197 * TERA, "int8": 393 * TERA},
    819 * GIGA,
    16 * GIGA,
    2 * MICRO,
    "Cloud TPU v5e documentation: ICI 400 GB/s both ways over 4 links; network 6.4 Tbit/s per 256-chip pod",
    efficiency=0.8,
)
_TPU_V5P = Device(
    "tpu-v5p",
    {"bfloat16": 459 * TERA, "float32": 459 * TERA, "int8": 918 * TERA},
    2765 * GIGA,
    95 * GIGA,
    2 * MICRO,
    "Cloud TPU v5p documentation: ICI 1200 GB/s both ways over 6 links; network 50 Gbit/s per chip",
    efficiency=0.8,
)

PRESETS: Mapping[str, Preset] = {
    # Virtual devices of one process talk through memory, hosts through Gloo over 10 Gbit/s Ethernet.
    "cpu": Preset(_CPU, 50 * MICRO, 2 * GIGA, "host", None, 500 * MICRO, gbit_per_s(10), gbit_per_s(10)),
    "v100-16gb": _v100("v100-16gb", 16),
    "v100-32gb": _v100("v100-32gb", 32),
    "p100-16gb": _gpu(_P100, 16 * GIGA, 1, 25, 50 * MICRO),
    "a100-80gb": _gpu(_A100, 300 * GIGA, 8, 200, 20 * MICRO),
    "h100": _hopper("h100", 3350 * GIGA, 80 * GIGA, "NVIDIA H100 SXM data sheet"),
    "h200": _hopper("h200", 4800 * GIGA, 141 * GIGA, "NVIDIA H200 SXM data sheet"),
    "tpu-v3": _tpu(_TPU_V3, 70 * GIGA, 2048, gbit_per_s(12.5), torus=2, cores=2),
    "tpu-v4": _tpu(_TPU_V4, 100 * GIGA, 4096, gbit_per_s(50), torus=3),
    "tpu-v5e": _tpu(_TPU_V5E, 100 * GIGA, 256, gbit_per_s(25), torus=2),
    "tpu-v5p": _tpu(_TPU_V5P, 200 * GIGA, 8960, gbit_per_s(50), torus=3),
}


def outward(name: str, device: Device, levels: Sequence[Level]) -> Level:
    """The link by which a cluster reaches others: its outermost one between hosts, else that of the device's preset.

    Raises:
      ClusterError: it has one level, and its device is of no preset.

    >>> outward("h100:8", PRESETS["h100"].device, PRESETS["h100"].levels(1, 8)).bytes_per_s
    50000000000.0
    """
    if len(levels) > 1:
        return levels[-1]
    preset = PRESETS.get(device.name)
    if preset is None or (preset.device != device and device.rates is None):
        raise ClusterError(
            f"cluster {name!r} has links between its devices only, so nothing says how it is joined to others; say "
            "both numbers: Cluster.joined([...], latency_s=..., bytes_per_s=...)"
        )
    return preset.network(1, levels[0].size)


_COUNTS = re.compile(r"[0-9]+(x[0-9]+)?(:\w*)?|[0-9]+x[0-9]+x[0-9]+:\w*", re.ASCII)


def parse(text: str) -> tuple[str, Device, tuple[Level, ...]]:
    """The name, device and levels of a cluster such as ``h100:16x8``. See :meth:`Cluster.parse`."""
    if not isinstance(text, str):
        raise ClusterError(f"a cluster is named by text such as 'h100:16x8', not by {text!r}")
    name, _, counts = text.strip().lower().partition(":")
    if name not in PRESETS:
        raise ClusterError(f"no device is called {name!r} in cluster {text!r}; {nearest(name, PRESETS)}")
    preset = PRESETS[name]
    if not _COUNTS.fullmatch(counts):
        raise ClusterError(
            f"cluster {text!r} has {f'counts {counts!r}' if counts else 'no count'}; write '{name}:8' (devices) or "
            f"'{name}:2x8' ({preset.group}s x devices per {preset.group}); of sites with the link that joins them, "
            f"'{name}:2x16x8:metro' or '{name}:2x8:metro'"
        )
    counts, _, link = counts.partition(":")
    if link or text.strip().endswith(":"):
        return _sites(text, name, counts, link)
    groups, devices = _sizes(text, preset, [int(n) for n in counts.split("x")])
    size = f"{groups}x{devices}" if groups > 1 else f"{devices}"
    return f"{name}:{size}", preset.device, preset.levels(groups, devices)


def _sites(text: str, name: str, counts: str, link: str) -> tuple[str, Device, tuple[Level, ...]]:
    """Sites joined by a wide-area link: their number comes first, and what each of them is follows."""
    if link not in LINKS:
        raise ClusterError(f"no link between sites is called {link!r} in cluster {text!r}; {nearest(link, LINKS)}")
    number, _, inside = counts.partition("x")
    if not inside:
        raise ClusterError(f"cluster {text!r} names a link between sites and one count; write '{name}:2x8:{link}'")
    if int(number) < 1:
        raise ClusterError(f"cluster {text!r} has a count of 0; every count must be 1 or more")
    site, device, levels = parse(f"{name}:{inside}")
    if number == "1":
        return site, device, levels
    devices = math.prod(level.size for level in levels)
    outer = LINKS[link].level("site", int(number), devices)
    return f"{name}:{int(number)}x{site.partition(':')[2]}:{link}", device, (*levels, outer)


def _sizes(text: str, preset: Preset, counts: list[int]) -> tuple[int, int]:
    """(groups, devices per group) of the counts that were written."""
    if min(counts) == 0:
        raise ClusterError(f"cluster {text!r} has a count of 0; every count must be 1 or more")
    limit, group = preset.group_size, preset.group
    if len(counts) == 2:
        groups, devices = counts
        if limit is not None and devices > limit:
            raise ClusterError(
                f"cluster {text!r} asks for {devices} devices per {group}; {preset.device.name} has at most {limit}. "
                f"The order is {group}s x devices per {group}"
            )
        return groups, devices
    total = counts[0]
    if limit is None or total <= limit:
        return 1, total
    if total % limit:
        raise ClusterError(
            f"cluster {text!r} does not fill its {group}s: {total} devices are more than one {group}'s {limit} and no "
            f"multiple of it; write '{preset.device.name}:<{group}s>x<devices per {group}>'"
        )
    return total // limit, limit
