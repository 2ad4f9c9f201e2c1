"""w2v-BERT's parts beside their definitions, one frame at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from autopar.models.layers.contrastive import contrastive_loss, draw_distractors, masked_spans
from autopar.models.layers.quantiser import TEMPERATURE, Quantiser, diversity_loss
from tests.models.naive_speech import randomised, softmax

RNG = np.random.default_rng(0)
HEARD = np.arange(6) < np.array([6, 4, 6])[:, None]
# Some masked, one alone, none.
MASKED = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6], bool)


def test_spans_cover_what_follows_their_beginnings():
    heard = np.arange(40) < np.array([40, 25, 40, 33])[:, None]
    key = jax.random.key(3)
    begins = np.asarray(jax.random.bernoulli(key, 0.1, heard.shape))
    found = masked_spans(key, jnp.asarray(heard), 0.1, 4)
    expected = [[any(row[max(0, t - 3) : t + 1]) for t in range(40)] for row in begins]
    np.testing.assert_array_equal(found, np.array(expected) & heard)
    assert 0.2 < np.mean(expected) < 0.5


def test_distractors_are_other_masked_frames_drawn_evenly():
    found = np.asarray(jax.jit(draw_distractors, static_argnums=2)(jax.random.key(0), jnp.asarray(MASKED), 3000))
    for t in (0, 1, 3):
        frames, counts = np.unique(found[0, t], return_counts=True)
        assert set(frames) == {0, 1, 3} - {t}
        assert abs(counts - 1500).max() < 150
    assert found.min() >= 0 and found.max() < 6


def test_contrastive_loss_is_that_of_the_paper():
    context, targets = RNG.standard_normal((2, 3, 6, 5))
    distractors = np.array(draw_distractors(jax.random.key(1), jnp.asarray(MASKED), 4))
    found = jax.jit(contrastive_loss)(context, targets, MASKED, distractors)

    def similarity(a, b):
        return a @ b / np.sqrt(a @ a * (b @ b)) / 0.1

    expected = np.zeros(3)
    for row, t in zip(*MASKED.nonzero(), strict=True):
        if MASKED[row].sum() > 1:
            own = similarity(context[row, t], targets[row, t])
            others = [similarity(context[row, t], targets[row, j]) for j in distractors[row, t]]
            expected[row] -= np.log(np.exp(own) / np.exp([own, *others]).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert expected[0] > 0 and expected[1] == 0


@pytest.mark.parametrize("noisy", [False, True])
def test_quantised_are_the_likeliest_codes_and_gradients_are_the_softmaxs(noisy):
    groups, codes, hidden = 2, 5, 4
    module, p = randomised(Quantiser(hidden, groups, codes, 6, nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64))
    x = RNG.standard_normal((3, 6, hidden))
    key = jax.random.key(5) if noisy else None
    wanted = RNG.standard_normal((3, 6, 6))
    forward = jax.jit(lambda x: module(x, key))
    joined, ids, probabilities = forward(x)
    logits = np.einsum("bsd,dgv->bsgv", x, p["choose"]["kernel"]) + p["choose"]["bias"]
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-10)
    if noisy:
        assert (np.asarray(ids) != logits.argmax(axis=-1)).any()
        logits = logits + np.asarray(jax.random.gumbel(key, logits.shape, logits.dtype))
    np.testing.assert_array_equal(ids, logits.argmax(axis=-1))
    for row, t in np.ndindex(3, 6):
        code = np.concatenate([p["book"][g, ids[row, t, g]] for g in range(groups)])
        np.testing.assert_allclose(joined[row, t], code, rtol=1e-10, atol=1e-12)

    def soft(x):
        logits = jnp.einsum("bsd,dgv->bsgv", x, p["choose"]["kernel"]) + p["choose"]["bias"]
        if noisy:
            logits = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
        mixed = jnp.einsum("bsgv,gvc->bsgc", jax.nn.softmax(logits / TEMPERATURE), p["book"])
        return (mixed.reshape(wanted.shape) * wanted).sum()

    grads = jax.jit(jax.grad(lambda x: (module(x, key)[0] * wanted).sum()))(x), jax.jit(jax.grad(soft))(x)
    np.testing.assert_allclose(*grads, rtol=1e-9, atol=1e-11)


def test_diversity_is_the_share_of_codes_left_unused():
    probabilities = softmax(RNG.standard_normal((3, 6, 2, 5)))
    probabilities[2] = np.eye(5)[0]
    found = diversity_loss(jnp.asarray(probabilities), jnp.asarray(HEARD))
    for row in range(3):
        perplexity = 0.0
        for g in range(2):
            mean = probabilities[row, HEARD[row], g].mean(axis=0)
            perplexity += np.exp(-sum(p * np.log(p) for p in mean if p > 0))
        assert found[row] == pytest.approx((2 * 5 - perplexity) / (2 * 5), rel=1e-6)
    assert found[2] == pytest.approx(1 - 1 / 5)
