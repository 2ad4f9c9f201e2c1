"""Depthwise convolution along a sequence in Flax NNX, as products of matrices.

Each channel is filtered by a kernel of its own, which compilers' grouped convolutions, and still more their gradients,
are slow at. A convolution is also a product with a banded (Toeplitz) matrix. Over the whole sequence most of that is
zeros; over blocks as long as the kernel, each of which reads itself and the next, half of it is, and what remains is
a product of matrices for each channel.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def banded(kernel: jax.Array) -> jax.Array:
    """Each row one further to the right: [k, d] -> [k, 2 k, d], whose [i, i + j] is kernel[j] and the rest zero.

    Rows longer by one than they are read: the opposite of what `relative_shift` does.
    """
    k, d = kernel.shape
    row = jnp.pad(kernel, ((0, k + 1), (0, 0)))
    return jnp.tile(row, (k, 1))[: 2 * k * k].reshape(k, 2 * k, d)


def depthwise(x: jax.Array, kernel: jax.Array, back: int) -> jax.Array:
    """Sums kernel[j] x[i - back + j] over j, x being zero outside: [b, s, d] and [k, d] -> [b, s, d]."""
    (b, s, d), k = x.shape, len(kernel)
    count = -(-s // k)
    after = (count + 1) * k - s - back
    blocks = jnp.pad(x, ((0, 0), (back, after), (0, 0))).reshape(b, count + 1, k, d)
    pairs = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
    out = jnp.einsum("bcmd,kmd->bckd", pairs, banded(kernel))
    return out.reshape(b, count * k, d)[:, :s]


class Depthwise(nnx.Module):
    """A kernel for each channel; position i reads positions i - (k - 1) // 2 and on, or if causal up to i."""

    def __init__(self, hidden: int, kernel: int, rngs: nnx.Rngs, *, causal: bool, dtype: Any, param_dtype: Any):
        self.dtype = dtype
        self.back = kernel - 1 if causal else (kernel - 1) // 2
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (kernel, hidden), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, s, d] -> [b, s, d]."""
        return depthwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.back)
