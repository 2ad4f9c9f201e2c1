"""Random bits as an elementwise function of position.

Under partitionable threefry, ``random_bits`` is ``threefry2x32(key, position)``: written out, every dim of the
bits can be split like any other, and the result stays bit-identical to jax's. The position is the row-major
index, a 64-bit number held as two 32-bit words, built from one ``iota`` per dim.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.random import threefry2x32_p

_WORD = 1 << 32
_HALF = np.uint32(0xFFFF)
_SIXTEEN = np.uint32(16)
_UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def expandable(dtype: Any) -> bool:
    """Whether ``random_bits`` of keys of this dtype is a function of position."""
    return str(dtype) == "key<fry>" and bool(jax.config.values["jax_threefry_partitionable"])


@functools.lru_cache(maxsize=1024)
def bits_jaxpr(keys_shape: tuple[int, ...], dtype: Any, bit_width: int, shape: tuple[int, ...]) -> ClosedJaxpr:
    """``random_bits`` of an array of keys, written out.

    Args:
      keys_shape: shape of the array of keys; every key gives bits of shape ``shape``.
      dtype: the key dtype.
      bit_width: 8, 16, 32 or 64.
      shape: shape of the bits of one key.
    """
    keys = jax.ShapeDtypeStruct(keys_shape, dtype)
    return jax.make_jaxpr(functools.partial(random_bits, bit_width=bit_width, shape=shape))(keys)


def random_bits(keys: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """What ``random_bits`` computes, as ``iota`` and one ``threefry2x32``.

    Returns:
      Unsigned integers of ``bit_width`` bits, shape ``(*keys.shape, *shape)``.
    """
    words = jax.random.key_data(keys)
    axes = tuple(range(keys.ndim))
    full = (*keys.shape, *shape)

    def word(index: int) -> Any:
        w = lax.index_in_dim(words, index, axis=-1, keepdims=False)
        return lax.broadcast_in_dim(w, full, axes) if keys.ndim else w

    def spread(count: Any) -> Any:  # jax's own lowering broadcasts the key words, but not the counts
        return lax.broadcast_in_dim(count, full, tuple(range(len(full) - np.ndim(count), len(full))))

    high, low = positions(shape)
    bits_high, bits_low = threefry2x32_p.bind(word(0), word(1), spread(high), spread(low))
    if bit_width == 64:
        top = lax.convert_element_type(bits_high, np.uint64)
        return lax.shift_left(top, lax.full_like(top, 32)) | lax.convert_element_type(bits_low, np.uint64)
    bits = lax.bitwise_xor(bits_high, bits_low)
    return bits if bit_width == 32 else lax.convert_element_type(bits, _UINT[bit_width])


def positions(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The row-major index of every element: ``(high, low)`` 32-bit words.

    ``high`` is a scalar zero where all indices fit into 32 bits.
    """
    zero = np.uint32(0)
    if math.prod(shape) == 0:
        return zero, lax.full(shape, 0, np.uint32)
    high: Any = zero
    low: Any = zero
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        dim_high, dim_low = wide_product(lax.iota(np.uint32, size), size, math.prod(shape[dim + 1 :]))
        at = functools.partial(lax.broadcast_in_dim, shape=shape, broadcast_dimensions=(dim,))
        dim_low = at(dim_low)
        dim_high = dim_high if np.ndim(dim_high) == 0 else at(dim_high)
        if low is zero:
            high, low = dim_high, dim_low
            continue
        low = lax.add(low, dim_low)
        if math.prod(shape) > _WORD:
            carry = lax.convert_element_type(lax.lt(low, dim_low), np.uint32)
            high = _plus(_plus(high, dim_high), carry)
    return high, (lax.full(shape, 0, np.uint32) if low is zero else low)


def wide_product(index: jax.Array, size: int, stride: int) -> tuple[Any, jax.Array]:
    """``index * stride`` as ``(high, low)`` 32-bit words, for ``index < size``.

    ``high`` is a scalar zero where no product needs it. Otherwise 16-bit halves are multiplied, since 64-bit
    integers do not exist unless the user enables them.
    """
    low = lax.mul(index, np.uint32(stride % _WORD)) if stride % _WORD != 1 else index
    if (size - 1) * stride < _WORD:
        return np.uint32(0), low
    s0, s1 = np.uint32(stride & 0xFFFF), np.uint32((stride >> 16) & 0xFFFF)
    i0, i1 = lax.bitwise_and(index, _HALF), lax.shift_right_logical(index, _SIXTEEN)
    cross0, cross1 = lax.mul(i0, s1), lax.mul(i1, s0)
    middle = lax.shift_right_logical(lax.mul(i0, s0), _SIXTEEN)
    middle = lax.add(middle, lax.add(lax.bitwise_and(cross0, _HALF), lax.bitwise_and(cross1, _HALF)))
    high = lax.mul(i1, s1)
    for part in (cross0, cross1, middle):
        high = lax.add(high, lax.shift_right_logical(part, _SIXTEEN))
    return lax.add(high, lax.mul(index, np.uint32((stride >> 32) % _WORD))), low


def _plus(a: Any, b: Any) -> Any:
    """The sum of two words, either of which may be a scalar zero."""
    if np.ndim(a) == 0:
        return b
    return a if np.ndim(b) == 0 else lax.add(a, b)
