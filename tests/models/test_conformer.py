"""The Conformer beside its equations, what padding and the future may change, and what its losses are made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from autopar.models import get
from autopar.models.families.conformer import Conformer, ConformerConfig
from autopar.models.layers.attention import embedded_distances
from autopar.models.layers.conformer import Layer, Subsampling, init_layers, listen, visible_frames
from autopar.models.layers.ctc import ctc_loss
from autopar.models.layers.decoder import DecoderLayer, transcript_loss
from autopar.models.layers.depthwise import depthwise
from tests.models import naive_speech as naive
from tests.models.drawn import drawn_state

FRAMES, HIDDEN = 6, 8
SIZES = {"hidden": HIDDEN, "heads": 2, "kernel": 4, "channels": 4, "features": 8, "dtype": "float64"}
HEARD = np.arange(FRAMES) < np.array([6, 4])[:, None]
HALVES = (slice(8), slice(8, None))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, FRAMES, HIDDEN))


def naive_layer(p, c, x, heard, stats=None):
    """[b, s, d]. `stats`, if given, are the mean and variance that batch norm uses."""

    def sees(i, j, row):
        return heard[row, j] and (not c.causal or 0 <= i - j < c.left_context)

    x = x + 0.5 * naive.feed_forward(p["feed1"], x)
    y = naive.layer_norm(p["attention_norm"], x)
    x = x + np.stack(
        [naive.attention(p["attention"], y[r], y[r], lambda i, j, r=r: sees(i, j, r)) for r in range(len(x))]
    )
    conv = p["convolution"]
    y = naive.linear(conv["expand"], naive.layer_norm(conv["norm"], x))
    y = y[..., :HIDDEN] / (1 + np.exp(-y[..., HIDDEN:])) * heard[..., None]
    back = c.kernel - 1 if c.causal else (c.kernel - 1) // 2
    y = np.stack([naive.depthwise(conv["depthwise"]["kernel"], row, back) for row in y])
    if c.norm == "layer":
        y = naive.layer_norm(conv["inner_norm"], y)
    else:
        mean, variance = (y[heard].mean(axis=0), y[heard].var(axis=0)) if stats is None else stats
        y = (y - mean) / np.sqrt(variance + 1e-5) * conv["inner_norm"]["scale"] + conv["inner_norm"]["bias"]
    x = x + naive.linear(conv["project"], naive.swish(y))
    return naive.layer_norm(p["norm"], x + 0.5 * naive.feed_forward(p["feed2"], x))


VARIANTS = [{}, {"norm": "batch", "relative": False}, {"causal": True, "left_context": 3}]


@pytest.mark.parametrize("sizes", VARIANTS, ids=str)
def test_a_layer_is_that_of_the_paper(sizes):
    c = ConformerConfig(**SIZES, **sizes)
    layer, p = naive.randomised(nnx.jit(Layer, static_argnums=0)(c, nnx.Rngs(0)))
    distances = embedded_distances(FRAMES, HIDDEN, c.param_dtype)
    arguments = (jnp.asarray(X), visible_frames(c, FRAMES, jnp.asarray(HEARD)), jnp.asarray(HEARD), distances)
    run = nnx.jit(lambda layer: layer(*arguments))
    if c.norm == "batch":
        layer.train()
        inner = layer.convolution.inner_norm
        inner.mean, inner.var = nnx.BatchStat(jnp.zeros(HIDDEN)), nnx.BatchStat(jnp.linspace(0.5, 2.0, HIDDEN))
    np.testing.assert_allclose(run(layer)[HEARD], naive_layer(p, c, X, HEARD)[HEARD], rtol=1e-9, atol=1e-10)
    if c.norm == "batch":
        layer.eval()
        stats = np.asarray(inner.mean[...]), np.asarray(inner.var[...])
        assert not np.allclose(stats[1], jnp.linspace(0.5, 2.0, HIDDEN))
        expected = naive_layer(p, c, X, HEARD, stats)
        np.testing.assert_allclose(run(layer)[HEARD], expected[HEARD], rtol=1e-9, atol=1e-10)


def test_layers_begin_with_parameters_of_their_own():
    c = ConformerConfig(**SIZES)
    first, second = jax.jit(lambda: [layer.feed1.up.kernel[...] for layer in init_layers(c, 2, nnx.Rngs(0))])()
    assert first.shape == (HIDDEN, 4 * HIDDEN)
    bound = np.sqrt(6 / (5 * HIDDEN))  # Xavier's for one layer's sizes, not for both layers'
    assert 0.9 * bound < abs(first).max() < bound
    assert not np.isclose(first, second).any()


@pytest.mark.parametrize(("length", "kernel"), [(9, 4), (8, 4), (3, 7), (5, 1)], ids=str)
def test_depthwise_filters_each_channel(length, kernel):
    x, w = RNG.standard_normal((2, length, 3)), RNG.standard_normal((kernel, 3))
    for back in {0, (kernel - 1) // 2, kernel - 1}:
        expected = np.stack([naive.depthwise(w, row, back) for row in x])
        np.testing.assert_allclose(depthwise(jnp.asarray(x), jnp.asarray(w), back), expected, rtol=1e-12, atol=1e-12)


def test_subsampling_reads_four_features_and_what_came_before():
    c = ConformerConfig(**SIZES)
    module, p = naive.randomised(nnx.jit(Subsampling, static_argnums=0)(c, nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((12, c.features))

    def convolution(p, x):
        padded = np.pad(x, ((1, 0), (1, 1), (0, 0)))
        out = np.zeros((len(x) // 2, x.shape[1] // 2, p["bias"].size))
        for t, f in np.ndindex(out.shape[:2]):
            patch = padded[2 * t : 2 * t + 3, 2 * f : 2 * f + 3]
            out[t, f] = np.maximum(0.0, np.einsum("tfi,tfio->o", patch, p["kernel"]) + p["bias"])
        return out

    expected = naive.linear(p["project"], convolution(p["conv2"], convolution(p["conv1"], x[..., None])).reshape(3, -1))
    np.testing.assert_allclose(module(jnp.asarray(x)[None])[0], expected, rtol=1e-10)


def test_a_decoder_layer_is_that_of_the_transformer():
    layer, p = naive.randomised(DecoderLayer(HIDDEN, 2, nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64))
    memory = np.random.default_rng(1).standard_normal((2, 5, HIDDEN))
    heard = np.arange(5) < np.array([5, 3])[:, None]
    found = nnx.jit(lambda layer: layer(jnp.asarray(X), jnp.asarray(memory), jnp.asarray(heard)))(layer)
    for row in range(2):
        x = X[row]
        y = naive.layer_norm(p["norm1"], x)
        x = x + naive.attention(p["attention"], y, y, lambda i, j: j <= i)
        y = naive.layer_norm(p["norm2"], x)
        x = x + naive.attention(p["across"], y, memory[row], lambda i, j, row=row: heard[row, j])
        x = x + naive.linear(p["down"], naive.swish(naive.linear(p["up"], naive.layer_norm(p["norm3"], x))))
        np.testing.assert_allclose(found[row], x, rtol=1e-9, atol=1e-10)


def test_the_end_of_a_transcript_counts_and_padding_does_not():
    logits = np.random.default_rng(0).standard_normal((2, 4, 5))
    transcript = np.array([[3, 1, 0], [4, 2, 1]], np.int32)
    log_p = np.log(naive.softmax(logits))
    nll, wrong = transcript_loss(jnp.asarray(logits), jnp.asarray(transcript))
    written = [[3, 1, 0], [4, 2, 1, 0]]
    for row, ids in enumerate(written):
        assert nll[row] == pytest.approx(-sum(log_p[row, i, symbol] for i, symbol in enumerate(ids)), rel=1e-12)
        assert wrong[row] == sum(logits[row, i].argmax() != symbol for i, symbol in enumerate(ids))


JOINT = {**SIZES, "layers": 1, "norm": "batch", "head": "aed", "decoder_layers": 1}


@functools.cache
def started():
    recipe = get("conformer", **JOINT, frames=8)
    return drawn_state(recipe), recipe.batch(0), jax.jit(recipe.evaluate)


def test_padding_changes_nothing():
    """The same utterances in a longer buffer, and noise after their ends, give the same losses and errors."""
    state, short, evaluate = started()
    n = short["waveform"].shape[1]
    after = np.arange(n + 1280) >= -(-short["length"] // 320)[:, None] * 320
    noise = np.random.default_rng(0).standard_normal((1, n + 1280))
    long = np.pad(short["waveform"], ((0, 0), (0, 1280))) + after * noise
    transcript = np.pad(short["transcript"], ((0, 0), (0, 2)))
    longer = jax.jit(get("conformer", **JOINT, frames=12).evaluate)
    found = longer(state, {"waveform": long, "length": short["length"], "transcript": transcript})
    assert set(found) == {"loss", "token_error_rate", "misspelt"}
    for name, value in evaluate(state, short).items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-12), name


def test_losses_are_means_over_the_symbols_of_the_whole_batch():
    state, batch, evaluate = started()
    halves = [jax.tree.map(lambda x, at=at: np.tile(x[at], (2,) + (1,) * (x.ndim - 1)), batch) for at in HALVES]
    symbols = [(half["transcript"] != 0).sum() for half in halves]
    assert symbols[0] != symbols[1]
    found = [evaluate(state, half) for half in halves]
    for name, value in evaluate(state, batch).items():
        mean = sum(float(half[name]) * n for half, n in zip(found, symbols, strict=True)) / sum(symbols)
        assert float(value) == pytest.approx(mean, rel=1e-12), name


def test_a_joint_loss_is_three_parts_ctc_and_seven_cross_entropy():
    state, batch, evaluate = started()
    c = ConformerConfig(**JOINT, frames=8)
    structure = nnx.graphdef(nnx.eval_shape(lambda: Conformer(c, nnx.Rngs(0))))

    @jax.jit
    def parts(state, batch):
        model = nnx.merge(structure, state.params, state.stats)
        model.eval()
        logits, heard, written = model(batch)
        return ctc_loss(logits, heard, batch["transcript"]).sum(), transcript_loss(written, batch["transcript"])[
            0
        ].sum()

    ctc, nll = parts(state, batch)
    expected = (0.3 * ctc + 0.7 * nll) / (batch["transcript"] != 0).sum()
    assert float(evaluate(state, batch)["loss"]) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_encoder_does_not_hear_the_future(causal):
    c = ConformerConfig(**SIZES, layers=2, frames=12, batch_size=2, causal=causal, left_context=4)
    batch, t = c.batch(0), 7
    batch["length"] = np.full_like(batch["length"], c.speech.samples)
    changed = batch["waveform"].copy()
    changed[:, t * 320 :] += np.random.default_rng(1).standard_normal(changed[:, t * 320 :].shape)

    @jax.jit
    def logits(waveform):
        return Conformer(c, nnx.Rngs(0))(batch | {"waveform": waveform})[0]

    before, after = logits(batch["waveform"]), logits(changed)
    assert np.array_equal(before[:, :t], after[:, :t]) == causal
    assert not np.allclose(before[:, t], after[:, t])


def test_features_are_of_mean_zero_and_spread_one():
    c = ConformerConfig(batch_size=32)
    features, heard = jax.jit(listen, static_argnums=0)(c, c.batch(0))
    inside = np.asarray(features)[np.repeat(np.asarray(heard), 4, axis=1)]
    assert abs(inside.mean()) < 0.3 and 0.7 < inside.std() < 1.3
