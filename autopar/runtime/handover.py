"""An array onto a stage's devices: from another stage's, or from the host.

``jax.device_put`` does it, and takes 50 to 100 microseconds of Python for each array, however small. Where source and
target are cut alike, or the source is on the host, all that happens below is one call that jax makes itself; it takes
10. These calls are not part of jax's public interface, so a version without them falls back to ``jax.device_put``.
"""

from __future__ import annotations

from collections.abc import Callable

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


def handover(source: NamedSharding, target: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """A function that puts an array, which lies as ``source`` says, as ``target`` says. It does not wait."""

    def slow(value: jax.Array) -> jax.Array:
        return jax.device_put(value, target)

    alike = source.spec == target.spec and source.mesh.shape == target.mesh.shape
    if _COPY is None or not alike or source.memory_kind != target.memory_kind:
        return slow
    try:
        devices = target._internal_device_list.addressable_device_list
    except AttributeError:
        return slow

    def fast(value: jax.Array) -> jax.Array:
        return _COPY([value], [devices], [target], [_REUSE])[0]

    return fast


def feeding(target: NamedSharding, shape: tuple[int, ...], dtype: str) -> Callable[[np.ndarray | jax.Array], jax.Array]:
    """A function that copies an array of that shape and dtype to where ``target`` says. The given one stays free."""

    def slow(value: np.ndarray | jax.Array) -> jax.Array:
        return jax.device_put(value, target, may_alias=False)

    if _PUT is None or not target.is_fully_addressable:
        return slow
    aval = jax.core.ShapedArray(shape, np.dtype(dtype))
    devices, taken = zip(*target.addressable_devices_indices_map(shape).items(), strict=True)

    def fast(value: np.ndarray | jax.Array) -> jax.Array:
        if not isinstance(value, np.ndarray):
            return slow(value)
        return _PUT(aval, target, [np.array(value[index]) for index in taken], list(devices), True)

    return fast


__all__ = ["feeding", "handover"]
