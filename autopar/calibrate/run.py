"""Measure everything, for every number of devices that may be at work together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from autopar.calibrate.collectives import collective_points, lines, transfer_line, transfer_points
from autopar.calibrate.hardware import about, profile_name
from autopar.calibrate.timing import QUICK, Effort, rising
from autopar.calibrate.work import call_line, call_s, kernel_s, matmul_points, memory_points, vector_points
from autopar.errors import ClusterError
from autopar.mesh import CollectiveLine, Measured, Profile, Rates
from autopar.units import bytes_text, rate_text, seconds_text

Progress = Callable[[str], None]
Point = tuple[float, float]


def calibrate(
    devices: Sequence[jax.Device] | None = None, *, quick: bool = False, progress: Progress = lambda _: None
) -> Profile:
    """Measure devices of this process.

    Matmuls by dtype and size, elementwise work by size, what it takes to start a kernel and to call a program,
    collectives by kind, number of devices and bytes, and arrays from some devices to others: each with 1, 2, 4, ... and
    all devices at work, since devices of one host may slow each other down.

    Args:
      devices: which; by default all of ``jax.devices()``. They must be equal, and of this process.
      quick: in about a third of the time, with fewer repetitions.
      progress: called with a line of text as it goes on.

    Returns:
      A profile, for :meth:`autopar.Cluster.with_profile`.

    Raises:
      ClusterError: the devices are unlike, or of several processes.
    """
    devices = list(devices if devices is not None else jax.devices())
    kinds = sorted({device.device_kind for device in devices})
    if len(kinds) > 1:
        raise ClusterError(f"devices of several kinds, {' and '.join(kinds)}, are calibrated one kind at a time")
    if any(device.process_index != jax.process_index() for device in devices):
        raise ClusterError(
            f"{len(devices)} devices are of several processes; calibrate those of one process: "
            "calibrate(jax.local_devices()). Links between processes keep the numbers of their cluster"
        )
    effort = QUICK if quick else Effort()
    found, raw = [], {}
    for count in _counts(len(devices)):
        measured, raw[str(count)] = _measured(devices[:count], effort, progress)
        found.append(measured)
    return Profile(profile_name(devices[0]), tuple(found), about(devices), {"quick": quick, "points": raw})


def _counts(devices: int) -> list[int]:
    """1, 2, 4, ... and all.

    >>> _counts(6), _counts(1)
    ([1, 2, 4, 6], [1])
    """
    return sorted({devices, *(2**k for k in range(devices.bit_length()) if 2**k <= devices)})


def _dtypes() -> list[str]:
    """What matmuls are measured in: 64 bits where jax has them switched on."""
    return ["float32", "bfloat16", *(["float64"] if jax.config.read("jax_enable_x64") else [])]


def _measured(devices: list[jax.Device], effort: Effort, progress: Progress) -> tuple[Measured, dict[str, Any]]:
    """What so many devices do together, and the points behind it."""
    at_work = f"{len(devices)} device{'s' if len(devices) > 1 else ''} at work"
    idle_s = call_s(devices, effort)
    raw: dict[str, Any] = {}
    start_s = kernel_s(devices, effort)
    progress(f"{at_work}: a kernel starts in {seconds_text(start_s)}")
    matmul = {}
    for dtype in _dtypes():
        raw[f"matmul {dtype}"] = points = matmul_points(devices, dtype, idle_s, effort)
        matmul[dtype] = _without(points, start_s)
        best = max(flops / seconds for flops, seconds in points)
        progress(f"{at_work}: matmuls in {dtype} up to {rate_text(best, 'FLOP/s')} each")
    vector = {}
    for dtype in _dtypes():
        raw[f"vector {dtype}"] = points = vector_points(devices, dtype, idle_s, effort)
        vector[dtype] = _without(points, start_s)
        best = max(flops / seconds for flops, seconds in points)
        progress(f"{at_work}: other arithmetic in {dtype} up to {rate_text(best, 'FLOP/s')} each")
    raw["memory"] = points = memory_points(devices, idle_s, effort)
    memory = _without(points, start_s)
    progress(f"{at_work}: memory at {rate_text(points[-1][0] / points[-1][1], 'B/s')} each")
    dispatch_s, argument_s = call_line(devices, effort)
    progress(f"{at_work}: a call takes {seconds_text(dispatch_s)}, and {seconds_text(argument_s)} for each argument")
    found: list[CollectiveLine] = []
    for size in (n for n in range(2, len(devices) + 1) if len(devices) % n == 0):
        by_kind = collective_points(devices, size, idle_s, effort)
        raw |= {f"{kind} of {size}": points for kind, points in by_kind.items()}
        found += lines(by_kind, size)
        reduce = next(line for line in found if (line.kind, line.size) == ("all-reduce", size))
        progress(f"{at_work}: all-reduce of {size}: {seconds_text(reduce.latency_s)}, then {_rate(reduce.s_per_byte)}")
    if len(devices) > 1:
        raw["transfer"] = points = transfer_points(devices, effort)
        found.append(transfer_line(points))
        progress(f"{at_work}: {bytes_text(points[-1][0])} to another device in {seconds_text(points[-1][1])}")
    rates = Rates(len(devices), tuple(matmul.items()), tuple(vector.items()), memory, dispatch_s, argument_s)
    return Measured(rates, start_s, tuple(found)), raw


def _without(points: Sequence[Point], start_s: float) -> tuple[Point, ...]:
    """Seconds of the work alone; at least half of what was measured, which in a loop need not hold a whole start."""
    return rising([(amount, max(seconds - start_s, seconds / 2)) for amount, seconds in points])


def _rate(s_per_byte: float) -> str:
    return rate_text(1 / s_per_byte, "B/s") if s_per_byte else "nothing more"
