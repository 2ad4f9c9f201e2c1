"""An array onto a stage's devices: from another stage's, or from the host.

``jax.device_put`` does it, and takes 50 to 100 microseconds of Python for each array, however small. Where source and
target are cut alike, or the source is on the host, all that happens below is one call that jax makes itself; it takes
5 to 10. These calls are not part of jax's public interface, so a version without them falls back to the public ones.

Next to nothing is faster still: a program of one CPU device takes a small array from the host as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

try:
    from jax._src.lib import xla_client

    _COPY = xla_client.batched_copy_array_to_devices_with_sharding
    _REUSE = xla_client.ArrayCopySemantics.REUSE_INPUT
    _PUT = xla_client.batched_device_put
except (ImportError, AttributeError):
    _COPY = _REUSE = _PUT = None

_SMALL_BYTES = 1 << 14


def stays_on_host(target: NamedSharding, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a program over the mesh of ``target`` takes an array of that shape and dtype from the host as it is."""
    devices = target.mesh.devices
    return (
        devices.size == 1
        and devices.item().platform == "cpu"
        and math.prod(shape) * np.dtype(dtype).itemsize <= _SMALL_BYTES
    )


def handover(
    source: NamedSharding, target: NamedSharding, shape: tuple[int, ...], dtype: str
) -> Callable[[Any], jax.Array | np.ndarray]:
    """A function that takes an array of that shape and dtype from where ``source`` says to where ``target`` says.

    It does not wait: what is not computed yet is copied once it is. What it returns shares no memory with the source.
    """
    put = _putting(source, target)
    if source.mesh.devices.size != 1 or not stays_on_host(target, shape, dtype):
        return put

    def small(value: Any) -> jax.Array | np.ndarray:
        if isinstance(value, np.ndarray) or value.is_ready():
            return np.array(value)
        return put(value)

    return small


def assembling(
    target: NamedSharding, shape: tuple[int, ...], dtype: str
) -> Callable[[Sequence[np.ndarray]], jax.Array]:
    """A function from the parts of this process's devices, in the order of the mesh, to the array as ``target`` says.

    The array may use the parts' memory.
    """
    devices = list(target.addressable_devices_indices_map(shape))

    def slow(parts: Sequence[np.ndarray]) -> jax.Array:
        shards = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        return jax.make_array_from_single_device_arrays(shape, target, shards)

    if _PUT is None:
        return slow
    aval = jax.core.ShapedArray(shape, np.dtype(dtype))

    def fast(parts: Sequence[np.ndarray]) -> jax.Array:
        return _PUT(aval, target, parts, devices, True)

    return fast


def feeding(target: NamedSharding, shape: tuple[int, ...], dtype: str) -> Callable[[np.ndarray | jax.Array], jax.Array]:
    """A function that copies an array of that shape and dtype to where ``target`` says. The given one stays free."""
    assemble = assembling(target, shape, dtype)
    taken = list(target.addressable_devices_indices_map(shape).values())

    def operation(value: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(value, np.ndarray):
            return assemble([np.array(value[index]) for index in taken])
        return jax.device_put(value, target, may_alias=False)

    return operation


def _putting(source: NamedSharding, target: NamedSharding) -> Callable[[Any], jax.Array]:
    def slow(value: Any) -> jax.Array:
        return jax.device_put(value, target)

    alike = source.spec == target.spec and source.mesh.shape == target.mesh.shape
    if _COPY is None or not alike or source.memory_kind != target.memory_kind:
        return slow
    try:
        devices = target._internal_device_list.addressable_device_list
    except AttributeError:
        return slow

    def fast(value: Any) -> jax.Array:
        return _COPY([value], [devices], [target], [_REUSE])[0]

    return fast


__all__ = ["assembling", "feeding", "handover", "stays_on_host"]
