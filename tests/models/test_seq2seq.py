"""Translation: padding changes nothing, the loss is a mean over words, and a frozen encoder stays as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autopar.models import get
from autopar.models.data.sentences import BEGIN, END, FIRST_WORD, PADDING
from autopar.models.layers.plain import smoothed_cross_entropy
from tests.models.drawn import drawn_state

SMALL = {"dtype": "float64", "hidden": 32, "layers": 1, "decoder_layers": 1, "vocab": 32, "dropout": 0.0}


@functools.cache
def started(**sizes):
    recipe = get("seq2seq", **SMALL, **sizes)
    return recipe, drawn_state(recipe), jax.jit(recipe.step)


def test_a_sentence_begins_ends_and_is_padded():
    batch = get("seq2seq").batch(0)
    renamed = {}
    for source, tokens, targets in zip(batch["source"], batch["tokens"], batch["targets"], strict=True):
        words, (n,) = source[source != PADDING], (targets == END).nonzero()[0]
        assert len(words) == n >= 1 and words.min() >= FIRST_WORD and not source[n:].any()
        assert tokens[0] == BEGIN and np.array_equal(tokens[1 : n + 1], targets[:n]) and not tokens[n + 1 :].any()
        assert not targets[n + 1 :].any()
        for word, other in zip(words, targets[:n][::-1], strict=True):
            assert renamed.setdefault(word, other) == other
    assert len(set(renamed.values())) == len(renamed)


def test_padding_changes_nothing():
    _, state, step = started()
    batch = get("seq2seq", **SMALL).batch(0)
    assert not batch["source"][:, 16:].any()
    new, metrics = step(state, batch)
    cut, same = step(state, batch | {"source": batch["source"][:, :16]})
    assert float(metrics["loss"]) == pytest.approx(float(same["loss"]), rel=1e-12)
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_the_loss_is_a_mean_over_the_words_of_the_whole_batch():
    recipe, state, step = started()
    batch = recipe.batch(0)
    _, whole = step(state, batch)
    halves = [step(state, jax.tree.map(lambda x, at=at: x[at], batch))[1] for at in (slice(8), slice(8, None))]
    words = np.array([float(half["words"]) for half in halves])
    losses = np.array([float(half["loss"]) for half in halves])
    assert float(whole["words"]) == words.sum() == (batch["targets"] != PADDING).sum()
    assert words[0] != words[1]
    assert float(whole["loss"]) == pytest.approx((losses * words).sum() / words.sum(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_that_of_optax(smoothing):
    logits = jax.random.normal(jax.random.key(0), (3, 5, 8))
    targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 8)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 8), smoothing)
    found = smoothed_cross_entropy(logits, targets, smoothing)
    np.testing.assert_allclose(found, optax.softmax_cross_entropy(logits, labels), rtol=1e-6)


def test_a_frozen_encoder_stays_as_it_is():
    recipe, first, step = started(tied=False, frozen="encoder")
    state = first
    for i in range(3):
        state, metrics = step(state, recipe.batch(i))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.params, state.params)
    assert not any(jax.tree.leaves(moved["encoder"])) and all(jax.tree.leaves(moved["decoder"]))
    assert np.isfinite(float(metrics["loss"]))
    # No moments either: the optimizer holds two arrays for each of the decoder's, and a count.
    decoder = sum(x.size for x in jax.tree.leaves(first.params["decoder"]))
    assert sum(x.size for x in jax.tree.leaves(first.opt_state)) == 2 * decoder + 1


def test_nothing_is_computed_for_a_frozen_encoder_on_the_way_back():
    def products(**sizes):
        recipe = get("seq2seq", **SMALL, tied=False, **sizes)
        return str(jax.make_jaxpr(recipe.step)(*recipe.abstract())).count("dot_general")

    # 8 products in the one layer (projections and feed-forward 6, scores and mixing 2), each with 2 on the way back;
    # and two gradients with respect to the encoder's output, those of key and value across.
    assert products() - products(frozen="encoder") == 2 * 8 + 2


def test_dropout_changes_with_the_key_in_the_state():
    recipe = get("seq2seq", **SMALL | {"dropout": 0.1})
    state, step = drawn_state(recipe), jax.jit(recipe.step)
    new, metrics = step(state, recipe.batch(0))
    assert float(step(state._replace(key=new.key), recipe.batch(0))[1]["loss"]) != float(metrics["loss"])
    assert float(step(state, recipe.batch(0))[1]["loss"]) == float(metrics["loss"])
