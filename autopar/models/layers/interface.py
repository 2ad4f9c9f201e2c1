"""What passes between LegoNN's modules (Dalmia et al. 2022): distributions over a vocabulary, at a chosen length."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from autopar.models.layers.attention import Attention, kernel_init
from autopar.models.layers.plain import sinusoids


class LengthController(nnx.Module):
    """Layers of attention from positions of another length to a sequence, and feed-forward.

    The positions know only where they are: what they say they have from the sequence.
    """

    def __init__(self, hidden: int, layers: int, heads: int, rngs: nnx.Rngs, **dtypes: Any):
        self.hidden, self.dtypes = hidden, dtypes
        self.layers = nnx.List([_ControlLayer(hidden, heads, rngs, **dtypes) for _ in range(layers)])
        self.norm = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)

    def __call__(self, frames: jax.Array, heard: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Re-samples to another length.

        Args:
            frames: [b, s, d].
            heard: [b, s] booleans, which frames count; they come first.
            length: n, positions for s frames; a part of the frames has that part of the positions, rounded up.

        Returns:
            [b, n, d], and [b, n] booleans, which positions count.
        """
        s = frames.shape[1]
        place = jnp.arange(length)
        counts = place * s < heard.sum(axis=1, dtype=jnp.int32)[:, None] * length
        # Each position has the sine of the frame that it stands at.
        at = place.astype(self.dtypes["param_dtype"]) * (s / length)
        x = jnp.broadcast_to(sinusoids(at, self.hidden), (len(frames), length, self.hidden)).astype(frames.dtype)
        frames = frames + sinusoids(jnp.arange(s, dtype=at.dtype), self.hidden).astype(frames.dtype)
        for layer in self.layers:
            x = layer(x, frames, heard)
        return self.norm(x), counts


class _ControlLayer(nnx.Module):
    def __init__(self, hidden: int, heads: int, rngs: nnx.Rngs, **dtypes: Any):
        options: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs, **dtypes}
        self.norm1 = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.across = Attention(hidden, heads, rngs, **dtypes)
        self.norm2 = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.up = nnx.Linear(hidden, 4 * hidden, **options)
        self.down = nnx.Linear(4 * hidden, hidden, **options)

    def __call__(self, x: jax.Array, frames: jax.Array, heard: jax.Array) -> jax.Array:
        x = x + self.across(self.norm1(x), frames, heard[:, None, None, :])
        return x + self.down(jax.nn.swish(self.up(self.norm2(x))))


def likeliest(marginals: jax.Array, beam: int) -> jax.Array:
    """Only the `beam` likeliest symbols of each distribution, scaled to sum to one: what a beam hands over.

    No gradient passes. Of equally likely symbols those with the lower id come first.

    Args:
        marginals: [b, n, v].
        beam: how many are kept.

    Returns:
        [b, n, v].
    """
    values, ids = jax.lax.top_k(jax.lax.stop_gradient(marginals), beam)
    kept = (jax.nn.one_hot(ids, marginals.shape[-1], dtype=values.dtype) * values[..., None]).sum(axis=-2)
    return kept / values.sum(axis=-1, keepdims=True)


class WeightedEmbedding(nnx.Module):
    """Distributions over symbols as the mean of the symbols' embeddings, with their positions."""

    def __init__(self, classes: int, hidden: int, rngs: nnx.Rngs, *, dtype: Any, param_dtype: Any):
        self.dtype = dtype
        self.table = nnx.Param(nnx.initializers.normal(hidden**-0.5)(rngs.params(), (classes, hidden), param_dtype))

    def __call__(self, marginals: jax.Array) -> jax.Array:
        """[b, n, v] -> [b, n, d] in the compute dtype."""
        table = self.table[...]
        hidden = table.shape[1]
        mixed = jnp.einsum("bnv,vd->bnd", marginals.astype(self.dtype), table.astype(self.dtype)) * hidden**0.5
        positions = sinusoids(jnp.arange(marginals.shape[1], dtype=table.dtype), hidden)
        return mixed + positions.astype(self.dtype)
