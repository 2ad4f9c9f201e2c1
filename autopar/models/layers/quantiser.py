"""A product quantiser with straight-through Gumbel softmax (Baevski et al. 2020, section 2) in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TEMPERATURE = 2.0  # the paper's first; it anneals from there


class Quantiser(nnx.Module):
    """Replaces each vector by one code of each group's book, joined."""

    def __init__(
        self, hidden: int, groups: int, codes: int, code_size: int, rngs: nnx.Rngs, *, dtype: Any, param_dtype: Any
    ):
        self.dtype = dtype
        self.choose = nnx.LinearGeneral(
            hidden,
            (groups, codes),
            kernel_init=nnx.initializers.xavier_uniform(),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        init = nnx.initializers.normal(1.0)
        self.book = nnx.Param(init(rngs.params(), (groups, codes, code_size // groups), param_dtype))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Quantises, and lets gradients pass as if by the softmax.

        Args:
            x: [b, s, d].
            key: what the Gumbel noise is drawn from; None chooses the likeliest code.

        Returns:
            [b, s, code_size] in the compute dtype, ids [b, s, groups] int32, and the probabilities of all codes
            [b, s, groups, codes] without noise, in float32 or more.
        """
        book = self.book[...]
        logits = self.choose(x).astype(book.dtype)
        noisy = logits if key is None else logits + jax.random.gumbel(key, logits.shape, logits.dtype)
        ids = jnp.argmax(noisy, axis=-1).astype(np.int32)
        hard = jax.nn.one_hot(ids, logits.shape[-1], dtype=logits.dtype)
        soft = jax.nn.softmax(noisy / TEMPERATURE, axis=-1)
        chosen = hard + soft - jax.lax.stop_gradient(soft)
        joined = jnp.einsum("bsgv,gvc->bsgc", chosen.astype(self.dtype), book.astype(self.dtype))
        return joined.reshape(*x.shape[:2], -1), ids, jax.nn.softmax(logits, axis=-1)


def diversity_loss(probabilities: jax.Array, heard: jax.Array) -> jax.Array:
    """The share of codes that an utterance leaves unused, by the perplexity of their mean probabilities (equation 4).

    The paper takes the mean over the batch, which would couple its examples; here each utterance has its own.

    Args:
        probabilities: [b, s, groups, codes].
        heard: [b, s] booleans, which frames count; at least one of each utterance.

    Returns:
        [b], from 0, all codes used alike, up to 1 - 1 / codes.
    """
    weight = heard.astype(probabilities.dtype)[..., None, None]
    mean = (probabilities * weight).sum(axis=1) / weight.sum(axis=1)
    entropy = -(mean * jnp.log(mean + 1e-9)).sum(axis=-1)
    return 1.0 - jnp.exp(entropy).mean(axis=-1) / mean.shape[-1]
