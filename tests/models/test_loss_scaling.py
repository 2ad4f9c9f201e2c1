"""A scaled loss trains as a plain one does; a step that overflows changes nothing but the scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import get
from autopar.models.update import FIRST_SCALE, LARGEST_SCALE, STEPS_TO_GROWTH, LossScale, next_scale


def test_powers_of_two_change_no_digit():
    plain, scaled = get("mlp", dtype="float64"), get("mlp", dtype="float64", loss_scaling=True)
    ours, theirs = plain.init(jax.random.key(0)), scaled.init(jax.random.key(0))
    for i in range(3):
        ours, expected = jax.jit(plain.step)(ours, plain.batch(i))
        theirs, found = jax.jit(scaled.step)(theirs, scaled.batch(i))
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-12)
        assert float(found["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=1e-12)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert int(theirs.loss_scale.good_steps) == 3


def test_a_step_that_overflows_is_skipped():
    recipe = get("mlp", dtype="float16", loss_scaling=True)
    state = recipe.init(jax.random.key(0))
    state = state._replace(loss_scale=state.loss_scale._replace(scale=jnp.float32(LARGEST_SCALE)))
    new, metrics = jax.jit(recipe.step)(state, recipe.batch(0))
    for a, b in zip(jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves((new.params, new.opt_state)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    assert int(new.step) == 1 and float(metrics["grad_norm"]) == 0.0 and np.isfinite(float(metrics["loss"]))
    assert float(new.loss_scale.scale) == float(metrics["loss_scale"]) == LARGEST_SCALE / 2


def test_float16_trains():
    recipe = get("gpt", dtype="float16", loss_scaling=True, learning_rate=3e-3, layers=1)
    state, batch, step, losses = recipe.init(jax.random.key(0)), recipe.batch(0), jax.jit(recipe.step), []
    for _ in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("scale", "good_steps", "finite", "expected"),
    [
        (FIRST_SCALE, 0, True, (FIRST_SCALE, 1)),
        (FIRST_SCALE, STEPS_TO_GROWTH - 1, True, (2 * FIRST_SCALE, 0)),
        (FIRST_SCALE, STEPS_TO_GROWTH - 1, False, (FIRST_SCALE / 2, 0)),
        (LARGEST_SCALE, STEPS_TO_GROWTH - 1, True, (LARGEST_SCALE, 0)),
        (1.0, 7, False, (1.0, 0)),
        (np.inf, 7, False, (LARGEST_SCALE, 0)),
    ],
)
def test_the_scale_adapts(scale, good_steps, finite, expected):
    now = LossScale(jnp.float64(scale), jnp.int32(good_steps))
    assert tuple(map(float, next_scale(now, jnp.bool_(finite)))) == expected
