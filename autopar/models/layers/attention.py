"""Multi-head attention in Flax NNX, to a sequence's own positions or another's, relative ones if asked.

Letters in einsums: b batch, s positions that ask, t positions that answer, n distances, h heads, k head size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from autopar.models.layers.plain import MASKED, sinusoids

kernel_init = nnx.initializers.xavier_uniform()


def relative_shift(scores: jax.Array) -> jax.Array:
    """Aligns scores by distance with keys: [..., s, 2 s - 1] (distance s - 1 down to -(s - 1)) -> [..., s, s].

    Transformer-XL's (Dai et al. 2019): padding each row by one and reading the numbers in rows shorter by one
    moves each row one further to the left.
    """
    *outer, s, n = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * len(outer) + [(0, 0), (1, 0)])
    return padded.reshape(*outer, n + 1, s)[..., 1:, :].reshape(*outer, s, n)[..., :s]


def embedded_distances(positions: int, hidden: int, dtype: np.dtype) -> jax.Array:
    """Sines of all distances between that many positions, from the furthest back to the furthest on: [2 s - 1, d]."""
    return sinusoids(jnp.arange(positions - 1, -positions, -1, dtype=dtype), hidden)


class Attention(nnx.Module):
    """Attention whose scores add one of content and, if relative, one of distance (Dai et al. 2019, section 3.3).

    No bias on keys: softmax is blind to it, its gradient is zero.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        rngs: nnx.Rngs,
        *,
        relative: bool = False,
        out_init: nnx.Initializer = kernel_init,
        **dtypes: Any,
    ):
        self.relative = relative
        shape = (heads, hidden // heads)
        options: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs, **dtypes}
        self.query = nnx.LinearGeneral(hidden, shape, **options)
        self.key = nnx.LinearGeneral(hidden, shape, use_bias=False, **options)
        self.value = nnx.LinearGeneral(hidden, shape, **options)
        self.out = nnx.LinearGeneral(shape, hidden, axis=(-2, -1), **options | {"kernel_init": out_init})
        if relative:
            self.position = nnx.LinearGeneral(hidden, shape, use_bias=False, **options)
            # The query's bias serves the content scores; for distances it is offset by one more.
            self.distance_bias = nnx.Param(jnp.zeros(shape, dtypes["param_dtype"]))

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        visible: jax.Array | None = None,
        distances: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes what the positions of `memory` say, for each position of `x`.

        Args:
            x: [b, s, d], the positions that ask.
            memory: [b, t, d], the positions that answer: `x` itself, or another sequence.
            visible: booleans that broadcast to [b, h, s, t], or None where all see all.
            distances: [2 s - 1, d], what `embedded_distances` returns; wanted if relative, when s equals t.

        Returns:
            [b, s, d].
        """
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        scores = jnp.einsum("bshk,bthk->bhst", q, k)
        if self.relative:
            assert distances is not None
            q = q + self.distance_bias[...].astype(q.dtype)
            scores = scores + relative_shift(jnp.einsum("bshk,nhk->bhsn", q, self.position(distances)))
        scores = (scores * q.shape[-1] ** -0.5).astype(jnp.promote_types(x.dtype, jnp.float32))
        if visible is not None:
            scores = jnp.where(visible, scores, MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        return self.out(jnp.einsum("bhst,bthk->bshk", weights, v))
