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

from autopar.calibrate.timing import Effort, line, repeated_s, typical_s
from autopar.sharding.rules.elementwise import TRANSCENDENTAL_FLOPS

Point = tuple[float, float]

_MATMULS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STREAMS = tuple(4**k for k in range(8, 16))  # bytes of one array, 64 KiB to 1 GiB
_TINY = 8  # rows and columns of a matmul that takes no time but that of starting a kernel
_WRITTEN_OUT = 258
_ROW = 64
_VECTORS = tuple(4**k for k in range(5, 14))  # elements of one array, 1,024 to 64 Mi
_SOFTMAX_FLOPS = TRANSCENDENTAL_FLOPS + 4  # of one element: max, difference, exp, sum, quotient
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


def kernel_s(devices: Sequence[jax.Device], effort: Effort) -> float:
    """Seconds to start a kernel: of a matmul with next to nothing to do, among many."""
    mesh = flat_mesh(devices)
    weights = jnp.full((_TINY, _TINY), 1 / _TINY, "float32")
    make = repeating(mesh, jnp.matmul, spread(mesh, (_TINY, _TINY), "float32"), [weights], unrolled=True)
    return repeated_s(make, effort, guess_s=effort.run_s / _WRITTEN_OUT, call_s=None, most=_WRITTEN_OUT)


def matmul_points(devices: Sequence[jax.Device], dtype: str, idle_s: float, effort: Effort) -> list[Point]:
    """(FLOP, seconds) of square matmuls, the smallest first, until one takes too long or does not fit."""
    mesh = flat_mesh(devices)
    found: list[Point] = []
    guess_s = 1e-5
    for n in _MATMULS:
        weights = jnp.full((n, n), 1 / n, dtype)  # of which products keep the size of numbers
        make = repeating(mesh, jnp.matmul, spread(mesh, (n, n), dtype), [weights])
        seconds = repeated_s(make, effort, guess_s=guess_s, call_s=idle_s)
        found.append((2.0 * n**3, seconds))
        if 8 * seconds > effort.limit_s or not _fits(devices[0], 64 * n * n * jnp.dtype(dtype).itemsize):
            break
        guess_s = 4 * seconds
    return found


def vector_points(devices: Sequence[jax.Device], dtype: str, idle_s: float, effort: Effort) -> list[Point]:
    """(FLOP, seconds) of arithmetic that is no matmul, counted as the rules of ops count it: softmax over rows."""
    mesh = flat_mesh(devices)
    found: list[Point] = []
    guess_s = 1e-5
    for size in _VECTORS:
        make = repeating(mesh, _softmax, spread(mesh, (size // _ROW, _ROW), dtype))
        seconds = repeated_s(make, effort, guess_s=guess_s, call_s=idle_s)
        found.append((float(_SOFTMAX_FLOPS * size), seconds))
        if 4 * seconds > effort.limit_s or not _fits(devices[0], 64 * size):
            break
        guess_s = 4 * seconds
    return found


def _softmax(x: Array) -> Array:
    raised = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
    return raised / jnp.sum(raised, axis=1, keepdims=True)


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


def call_line(devices: Sequence[jax.Device], effort: Effort) -> tuple[float, float]:
    """(seconds of a call, seconds more for each argument and result), the step being called again and again.

    All arguments but one are returned as they are, in their own memory, as the state of a step that is donated.
    """
    mesh = flat_mesh(devices)
    spec, found = PartitionSpec(mesh.axis_names), []
    for count in _ARGUMENTS:

        def local(x: Array, *others: Array) -> tuple[Array, ...]:
            return (x + 1, *others)

        mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * count, out_specs=(spec,) * count, check_vma=False)
        step = jax.jit(mapped, donate_argnums=tuple(range(count)))
        found.append(_calls_s(step, tuple(spread(mesh, (1,), "float32") for _ in range(count)), effort))
    return line([2 * count for count in _ARGUMENTS], found)  # as many results as arguments


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
