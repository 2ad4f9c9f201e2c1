"""Schedules of the learning rate rise, fall and end where they say."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.update import SCHEDULES, learning_rate


def rates(schedule, steps, warmup=4, total=20):
    rate = learning_rate(schedule, 1.0, warmup, total)
    return np.array([float(rate(i)) for i in range(steps)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warms_up_linearly(schedule):
    np.testing.assert_allclose(rates(schedule, 5), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_comes_down():
    np.testing.assert_allclose(rates("linear", 21)[[12, 20]], [0.55, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates("cosine", 30)[[12, 20, 29]], [0.55, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates("rsqrt", 17)[[8, 16]], [0.5**0.5, 0.5], rtol=1e-6)
    assert learning_rate("constant", 0.5, 0, 1) == 0.5


def test_a_step_uses_it():
    recipe = get("mlp", schedule="cosine", warmup_steps=3, total_steps=10, dtype="float64")
    slow, fast = recipe, get("mlp", dtype="float64", learning_rate=1e-3 / 4)
    for r in (slow, fast):
        assert r.config.learning_rate > 0
    a, _ = jax.jit(slow.step)(slow.init(jax.random.key(0)), slow.batch(0))
    b, _ = jax.jit(fast.step)(fast.init(jax.random.key(0)), fast.batch(0))
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)  # optax computes the step size in float32


@pytest.mark.parametrize(
    ("sizes", "hint"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "linear", "warmup_steps": 50, "total_steps": 50}, "must be larger than warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
    ],
)
def test_errors(sizes, hint):
    with pytest.raises(ValueError, match=hint):
        get("mlp", **sizes)
