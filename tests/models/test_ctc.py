"""CTC beside the sum over every alignment, and beside optax; token errors beside decoding and the usual table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autopar.models.layers.ctc import ctc_loss, token_errors

CLASSES, FRAMES = 3, 5
HEARD = np.arange(FRAMES) < np.array([5, 4, 3, 5, 1, 2])[:, None]
# Repeats, one symbol, nothing said, all frames needed, one frame, and a repeat more than there is room for.
TRANSCRIPTS = np.array([[1, 2, 0], [2, 2, 0], [0, 0, 0], [1, 1, 2], [2, 0, 0], [1, 1, 0]], np.int32)
LOGITS = np.random.default_rng(0).standard_normal((6, FRAMES, CLASSES))


def collapsed(alignment):
    return [symbol for symbol, _ in itertools.groupby(alignment) if symbol != 0]


def log_probability(logits, frames, symbols):
    logits = logits[:frames]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = 0.0
    for alignment in itertools.product(range(CLASSES), repeat=frames):
        if collapsed(alignment) == symbols:
            total += np.prod([probabilities[t, symbol] for t, symbol in enumerate(alignment)])
    return np.log(total) if total else -np.inf


def test_loss_sums_over_all_alignments():
    found = jax.jit(ctc_loss)(jnp.asarray(LOGITS), jnp.asarray(HEARD), jnp.asarray(TRANSCRIPTS))
    for i, (logits, heard, row) in enumerate(zip(LOGITS, HEARD, TRANSCRIPTS, strict=True)):
        expected = -log_probability(logits, heard.sum(), [s for s in row if s])
        if np.isinf(expected):
            assert found[i] > 1e8
        else:
            assert found[i] == pytest.approx(expected, rel=1e-12)


def test_loss_and_gradient_are_those_of_optax():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal((4, 20, 8)))
    heard = np.arange(20) < np.array([20, 17, 12, 9])[:, None]
    transcript = np.where(np.arange(6) < np.array([6, 4, 5, 1])[:, None], rng.integers(1, 8, (4, 6)), 0)
    transcript[0, 2] = transcript[0, 1]

    def ours(logits):
        losses = ctc_loss(logits, heard, transcript)
        return losses.sum(), losses

    def theirs(logits):
        losses = optax.ctc_loss(logits, 1.0 - heard, transcript, (transcript == 0).astype(float))
        return losses.sum(), losses

    (grad, losses), (expected_grad, expected) = (jax.jit(jax.grad(f, has_aux=True))(logits) for f in (ours, theirs))
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-9)
    assert not np.asarray(grad)[~heard].any()


def distance(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return table[-1, -1]


def test_token_errors_are_the_distance_of_what_is_recognised():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((64, 12, 4))
    heard = np.arange(12) < rng.integers(1, 13, 64)[:, None]
    transcript = np.where(np.arange(5) < rng.integers(0, 6, 64)[:, None], rng.integers(1, 4, (64, 5)), 0)
    found = jax.jit(token_errors)(jnp.asarray(logits), heard, jnp.asarray(transcript, jnp.int32))
    expected = [
        distance(collapsed(x[h].argmax(axis=1)), [s for s in row if s])
        for x, h, row in zip(logits, heard, transcript, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32 and len(set(expected)) > 4
