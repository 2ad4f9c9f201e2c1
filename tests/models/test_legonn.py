"""LegoNN's interface beside its definition, and which module learns from which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from autopar.models import get
from autopar.models.layers.interface import LengthController, WeightedEmbedding, likeliest
from tests.models import naive_speech as naive
from tests.models.drawn import drawn_state

DTYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}
SMALL = {"dtype": "float64", "hidden": 16, "heads": 2, "channels": 4, "features": 8, "frames": 8, "kernel": 3}
SHALLOW = {"layers": 1, "length_layers": 1, "decoder_layers": 1}


def test_positions_of_another_length_attend_to_the_frames():
    hidden, frames, length = 8, 6, 4
    module, p = naive.randomised(LengthController(hidden, 2, 2, nnx.Rngs(0), **DTYPES))
    x = np.random.default_rng(0).standard_normal((3, frames, hidden))
    heard = np.arange(frames) < np.array([6, 4, 1])[:, None]
    found, counts = nnx.jit(lambda module: module(jnp.asarray(x), jnp.asarray(heard), length))(module)
    # A part of the frames has that part of the positions, rounded up: 4, 8/3 and 2/3 of them.
    np.testing.assert_array_equal(np.asarray(counts).sum(axis=1), [4, 3, 1])
    for row in range(3):
        memory = x[row] + np.array([naive.sines(t, hidden) for t in range(frames)])
        y = np.array([naive.sines(i * frames / length, hidden) for i in range(length)])
        for layer in p["layers"].values():
            asks = naive.layer_norm(layer["norm1"], y)
            y = y + naive.attention(layer["across"], asks, memory, lambda i, j, row=row: heard[row, j])
            wide = naive.swish(naive.linear(layer["up"], naive.layer_norm(layer["norm2"], y)))
            y = y + naive.linear(layer["down"], wide)
        np.testing.assert_allclose(found[row], naive.layer_norm(p["norm"], y), rtol=1e-9, atol=1e-10)


def test_the_likeliest_are_kept_and_ties_go_to_the_lower_id():
    marginals = np.array([[[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]])
    expected = [[[0, 4 / 7, 0, 3 / 7], [0.5, 0.5, 0, 0], [0, 1, 0, 0]]]
    np.testing.assert_allclose(likeliest(jnp.asarray(marginals), 2), expected, rtol=1e-12)
    np.testing.assert_allclose(likeliest(jnp.asarray(marginals), 4), marginals, rtol=1e-12)
    assert not np.asarray(jax.grad(lambda x: (likeliest(x, 2) ** 2).sum())(jnp.asarray(marginals))).any()


def test_distributions_are_ingested_as_the_mean_embedding():
    module, p = naive.randomised(WeightedEmbedding(5, 8, nnx.Rngs(0), **DTYPES))
    marginals = naive.softmax(np.random.default_rng(0).standard_normal((2, 3, 5)))
    found = module(jnp.asarray(marginals))
    for row, i in np.ndindex(2, 3):
        mean = sum(marginals[row, i, v] * p["table"][v] for v in range(5)) * np.sqrt(8)
        np.testing.assert_allclose(found[row, i], mean + naive.sines(i, 8), rtol=1e-10)


@pytest.mark.parametrize("ingestor", ["weighted", "beam"])
def test_a_frozen_decoder_teaches_the_encoder_only_through_whole_distributions(ingestor):
    recipe = get("legonn", **SMALL, **SHALLOW, frozen="decoder", ingestor=ingestor)
    first, batch = drawn_state(recipe), recipe.batch(0)
    step = jax.jit(recipe.step)
    state, metrics = step(first, batch)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.params, state.params)
    assert all(jax.tree.leaves(moved["encoder"])) and not any(jax.tree.leaves(moved["decoder"]))
    # No moments of what is frozen: two arrays for each of the encoder's, and a count.
    assert sum(x.size for x in jax.tree.leaves(first.opt_state)) == 1 + 2 * sum(
        x.size for x in jax.tree.leaves(first.params["encoder"])
    )
    # With a decoder that says something else the encoder's gradients change, or do not.
    louder = first._replace(params=first.params | {"decoder": jax.tree.map(lambda x: 1.5 * x, first.params["decoder"])})
    other = step(louder, batch)[1]
    assert float(other["decoder_loss"]) != float(metrics["decoder_loss"])
    same = float(other["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-12)
    assert same == (ingestor == "beam")
