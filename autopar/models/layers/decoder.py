"""A pre-norm Transformer decoder in Flax NNX that reads a memory, such as an encoder's frames, and writes a transcript.

Id 0 begins and ends every transcript, and pads it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from autopar.models.layers.attention import Attention, kernel_init
from autopar.models.layers.plain import causal, sinusoids, smoothed_cross_entropy


class DecoderLayer(nnx.Module):
    """Causal attention, attention to the memory, feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, hidden: int, heads: int, rngs: nnx.Rngs, **dtypes: Any):
        options: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs, **dtypes}
        self.norm1 = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.attention = Attention(hidden, heads, rngs, **dtypes)
        self.norm2 = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.across = Attention(hidden, heads, rngs, **dtypes)
        self.norm3 = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.up = nnx.Linear(hidden, 4 * hidden, **options)
        self.down = nnx.Linear(4 * hidden, hidden, **options)

    def __call__(self, x: jax.Array, memory: jax.Array, heard: jax.Array | None) -> jax.Array:
        """[b, u, d] and a memory [b, s, d] of which `heard` [b, s] may be read -> [b, u, d]."""
        y = self.norm1(x)
        x = x + self.attention(y, y, causal(x.shape[1]))
        x = x + self.across(self.norm2(x), memory, None if heard is None else heard[:, None, None, :])
        return x + self.down(jax.nn.swish(self.up(self.norm3(x))))


init_layer = nnx.jit(DecoderLayer, static_argnums=(0, 1), static_argnames=("dtype", "param_dtype"))


class Decoder(nnx.Module):
    """What follows each id of a transcript, given a memory: ids [b, u] -> logits [b, u, classes]."""

    def __init__(self, hidden: int, layers: int, heads: int, classes: int, rngs: nnx.Rngs, **dtypes: Any):
        self.hidden, self.compute_dtype, self.param_dtype = hidden, dtypes["dtype"], dtypes["param_dtype"]
        embedding_init = nnx.initializers.normal(hidden**-0.5)
        self.embed = nnx.Embed(classes, hidden, embedding_init=embedding_init, rngs=rngs, **dtypes)
        self.layers = nnx.List([init_layer(hidden, heads, rngs, **dtypes) for _ in range(layers)])
        self.norm = nnx.LayerNorm(hidden, rngs=rngs, **dtypes)
        self.head = nnx.Linear(hidden, classes, kernel_init=kernel_init, rngs=rngs, **dtypes)

    def __call__(self, ids: jax.Array, memory: jax.Array, heard: jax.Array | None = None) -> jax.Array:
        """[b, u] and a memory [b, s, d] of which `heard` [b, s] may be read -> [b, u, classes], in float32 or more."""
        positions = sinusoids(jnp.arange(ids.shape[1], dtype=self.param_dtype), self.hidden)
        x = self.embed(ids) * self.hidden**0.5 + positions.astype(self.compute_dtype)
        for layer in self.layers:
            x = layer(x, memory, heard)
        return self.head(self.norm(x)).astype(self.param_dtype)


def begun(transcript: jax.Array) -> jax.Array:
    """What a decoder has read before it writes each id: [b, u] -> [b, u + 1], shifted on by the 0 that begins."""
    return jnp.pad(transcript, ((0, 0), (1, 0)))


def transcript_loss(logits: jax.Array, transcript: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each symbol and of the 0 that ends it.

    Args:
        logits: [b, u + 1, classes], a decoder's after `begun(transcript)`.
        transcript: [b, u] ids, padded with 0.

    Returns:
        [b] losses in nats for each utterance, and [b] the targets whose likeliest id is another.
    """
    targets = jnp.pad(transcript, ((0, 0), (0, 1)))
    length = (transcript != 0).sum(axis=1)[:, None]
    counts = jnp.arange(targets.shape[1]) <= length
    nll = smoothed_cross_entropy(logits, targets, 0.0)
    wrong = counts & (jnp.argmax(logits, axis=-1) != targets)
    return jnp.where(counts, nll, 0.0).sum(axis=1), wrong.sum(axis=1).astype(np.int32)
