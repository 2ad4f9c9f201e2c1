"""Synthetic language-model batches: tokens and the token that follows each."""

from functools import partial
from typing import Any

import jax
import numpy as np


def token_batch(seed: int, batch_size: int, sequence: int, vocab: int) -> dict[str, np.ndarray]:
    """Uniform random token sequences and, as targets, the same sequences one position on.

    Args:
        seed: the same seed gives the same batch.
        batch_size: number of sequences.
        sequence: tokens in each.
        vocab: number of different tokens.

    Returns:
        {"tokens": [batch_size, sequence] int32, "targets": the same}.
    """
    stream = np.random.default_rng(seed).integers(0, vocab, (batch_size, sequence + 1), dtype=np.int32)
    return {"tokens": np.ascontiguousarray(stream[:, :-1]), "targets": np.ascontiguousarray(stream[:, 1:])}


def token_spec(batch_size: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `token_batch`."""
    spec = jax.ShapeDtypeStruct((batch_size, sequence), np.int32)
    return {"tokens": spec, "targets": spec}


def token_batches(batch_size: int, sequence: int, vocab: int) -> dict[str, Any]:
    """What `make_recipe` is told of such batches."""
    return {
        "batch": partial(token_batch, batch_size=batch_size, sequence=sequence, vocab=vocab),
        "batch_spec": token_spec(batch_size, sequence),
        "unit": "tokens",
        "units_per_example": sequence,
    }
