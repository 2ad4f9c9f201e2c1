"""What work takes on each of several devices that do the same at the same time.

Everything is repeated inside one program, each repetition reading what the one before made. One device alone is often
faster: virtual devices share the cores of a host, and the devices of a host its power.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar.calibrate.timing import Effort, repeated_s, typical_s

Point = tuple[float, float]

_MATMULS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STREAMS = tuple(4**k for k in range(8, 16))  # bytes of one array, 64 KiB to 1 GiB
_TINY = 64  # matmuls up to this size are written out one after the other
_WRITTEN_OUT = 66
_ARGUMENTS = (2, 66)
_CALLS = 20


def repeating(
    mesh: Mesh, body: Callable[..., Array], x: Array, fixed: Sequence[Array] = (), *, unrolled: bool = False
) -> Callable[[int], Callable[[], Any]]:
    """Programs that apply ``body`` to every device's part of ``x`` so many times, for :func:`repeated_s`.

    ``fixed`` is what the body takes besides, whole on every device: as arguments, for of constants XLA knows too much.
    A loop over tiny work is compiled into one kernel by XLA for CPUs; ``unrolled`` writes the repetitions out.
    """
    spec, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    placed = [jax.device_put(each, NamedSharding(mesh, whole)) for each in fixed]

    def make(times: int) -> Callable[[], Any]:
        def local(x: Array, *fixed: Array) -> Array:
            if not unrolled:
                return lax.fori_loop(0, times, lambda _, x: body(x, *fixed), x)
            for _ in range(times):
                x = body(x, *fixed)
            return x

        specs = (spec, *(whole for _ in fixed))
        program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False))
        return functools.partial(program, x, *placed)

    return make


def spread(mesh: Mesh, shape: Sequence[int], dtype: str, fill: float = 1.0) -> Array:
    """An array of which every device has a part of the given shape."""
    whole = (shape[0] * mesh.devices.size, *shape[1:])
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(lambda: jnp.full(whole, fill, dtype), out_shardings=sharding)()


def flat_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of one axis."""
    return Mesh(np.array(devices), ("x",))


def call_s(devices: Sequence[jax.Device], effort: Effort) -> float:
    """Seconds until a program that does next to nothing has run."""
    mesh = flat_mesh(devices)
    return typical_s(repeating(mesh, lambda x: x + 1, spread(mesh, (1,), "float32"))(2), effort)


def matmul_points(devices: Sequence[jax.Device], dtype: str, idle_s: float, effort: Effort) -> list[Point]:
    """(FLOP, seconds) of square matmuls, the smallest first, until one takes too long or does not fit.

    The smallest takes no time but that of starting a kernel.
    """
    mesh = flat_mesh(devices)
    found: list[Point] = []
    guess_s = effort.run_s / _WRITTEN_OUT
    for n in _MATMULS:
        weights = jnp.full((n, n), 1 / n, dtype)  # of which products keep the size of numbers
        make = repeating(mesh, jnp.matmul, spread(mesh, (n, n), dtype), [weights], unrolled=n <= _TINY)
        if n <= _TINY:
            seconds = repeated_s(make, effort, guess_s=guess_s, call_s=None, most=_WRITTEN_OUT)
        else:
            seconds = repeated_s(make, effort, guess_s=guess_s, call_s=idle_s)
        found.append((2.0 * n**3, seconds))
        if 8 * seconds > effort.limit_s or not _fits(devices[0], 64 * n * n * jnp.dtype(dtype).itemsize):
            break
        guess_s = 4 * seconds
    return found


def memory_points(devices: Sequence[jax.Device], idle_s: float, effort: Effort) -> list[Point]:
    """(bytes, seconds) of an elementwise kernel: an array read and one written."""
    mesh = flat_mesh(devices)
    found: list[Point] = []
    guess_s = 1e-5
    for nbytes in _STREAMS:
        make = repeating(mesh, lambda x: x * 0.5 + 1.0, spread(mesh, (nbytes // 4,), "float32"))
        seconds = repeated_s(make, effort, guess_s=guess_s, call_s=idle_s)
        found.append((2.0 * nbytes, seconds))
        if 4 * seconds > effort.limit_s or not _fits(devices[0], 16 * nbytes):
            break
        guess_s = 4 * seconds
    return found


def call_line(devices: Sequence[jax.Device], kernel_s: float, effort: Effort) -> tuple[float, float]:
    """(seconds of a call, seconds more for each argument and result), the step being called again and again.

    Args:
      devices: on all of which it runs.
      kernel_s: of one kernel; there is one for each argument.
      effort: how long to measure.
    """
    mesh = flat_mesh(devices)
    found = []
    for count in _ARGUMENTS:
        step = jax.jit(lambda *xs: tuple(x + 1 for x in xs), donate_argnums=tuple(range(count)))
        xs = tuple(spread(mesh, (1,), "float32") for _ in range(count))
        found.append(_calls_s(step, xs, effort) - count * kernel_s)
    (few, many), counts = found, [2 * n for n in _ARGUMENTS]  # as many results as arguments
    each = max((many - few) / (counts[1] - counts[0]), 0.0)
    return max(few - counts[0] * each, 0.0), each


def _calls_s(step: Callable[..., tuple[Array, ...]], xs: tuple[Array, ...], effort: Effort) -> float:
    """Seconds of a call among several that follow each other, each taking what the one before returned."""
    state = [xs]

    def calls() -> Any:
        for _ in range(_CALLS):
            state[0] = step(*state[0])
        return state[0]

    return typical_s(calls, effort) / _CALLS


def _fits(device: jax.Device, nbytes: float) -> bool:
    """Whether so much is free on a device, as far as it tells; a host's memory is taken to be 1 GiB."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return nbytes <= 2**30
    return nbytes <= stats["bytes_limit"] - stats.get("bytes_in_use", 0)
