"""What collectives take among devices, by kind, number of devices and bytes; and arrays from some to others.

On a mesh of groups by members, every group runs its collective at the same time, as they do in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar.calibrate.timing import Effort, line, repeated_s, typical_s
from autopar.calibrate.work import flat_mesh, repeating, spread
from autopar.mesh import TRANSFER, CollectiveLine
from autopar.runtime.handover import handover

Points = list[tuple[float, float]]

_BYTES = (2**8, 2**12, 2**16, 2**20, 2**24, 2**26, 2**28)  # 256 bytes to 256 MiB
_WORD = 4
_AXIS = "m"
_TRIPS = 8


def _bodies(size: int) -> dict[str, tuple[bool, Callable[[Array], Array]]]:
    """Per kind: whether a device carries its part (of the bytes that count) or all of them, and one repetition."""
    ring = [(i, (i + 1) % size) for i in range(size)]
    share = 1 / size
    return {
        "all-reduce": (False, lambda x: lax.psum(x, _AXIS) * share),
        "all-gather": (True, lambda x: lax.all_gather(x, _AXIS, tiled=True)[: x.shape[0]]),
        "reduce-scatter": (
            False,
            lambda x: lax.dynamic_update_slice(x, lax.psum_scatter(x, _AXIS, tiled=True) * share, (0,)),
        ),
        "all-to-all": (False, lambda x: lax.all_to_all(x, _AXIS, 0, 0, tiled=True)),
        "collective-permute": (False, lambda x: lax.ppermute(x, _AXIS, ring)),
    }


def collective_points(devices: Sequence[jax.Device], size: int, idle_s: float, effort: Effort) -> dict[str, Points]:
    """(bytes, seconds) of each kind among ``size`` devices, in as many groups as there are."""
    mesh = Mesh(np.array(devices).reshape(-1, size), ("g", _AXIS))
    found: dict[str, Points] = {}
    for kind, (part, body) in _bodies(size).items():
        found[kind] = []
        guess_s = 5e-5
        for nbytes in _BYTES:
            count = max(nbytes // _WORD // size, 1) * (1 if part else size)
            make = repeating(mesh, body, spread(mesh, (count,), "float32"))
            seconds = repeated_s(make, effort, guess_s=guess_s, call_s=idle_s)
            found[kind].append((float(count * _WORD * (size if part else 1)), seconds))
            if 8 * seconds > effort.limit_s:
                break
            guess_s = 2 * seconds
    return found


def transfer_points(devices: Sequence[jax.Device], effort: Effort) -> Points:
    """(bytes per device, seconds) of an array from the first half of devices to the second, and back."""
    half = len(devices) // 2
    meshes = [flat_mesh(some) for some in (devices[:half], devices[half : 2 * half])]
    here, there = (NamedSharding(mesh, PartitionSpec(mesh.axis_names)) for mesh in meshes)
    found: Points = []
    for nbytes in _BYTES:
        x = spread(meshes[0], (nbytes // _WORD,), "float32")
        go, back = (handover(a, b, x.shape, "float32") for a, b in ((here, there), (there, here)))

        def trips(x: Array = x, go: Callable[[Any], Any] = go, back: Callable[[Any], Any] = back) -> Any:
            for _ in range(_TRIPS):
                x = back(go(x))
            return x

        seconds = typical_s(trips, effort) / (2 * _TRIPS)
        found.append((float(nbytes), seconds))
        if 8 * seconds > effort.limit_s:
            break
    return found


def lines(points: dict[str, Points], size: int) -> tuple[CollectiveLine, ...]:
    """The line of each kind."""
    return tuple(CollectiveLine(kind, size, *line(*zip(*found, strict=True))) for kind, found in points.items())


def transfer_line(points: Points) -> CollectiveLine:
    """The line of transfers, whatever the number of devices."""
    return CollectiveLine(TRANSFER, 0, *line(*zip(*points, strict=True)))
