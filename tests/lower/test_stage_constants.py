"""Arrays that a step captures are there in whichever program of a stage reads them, split as the plan says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.partition import forward_ops, time_step
from autopar.trace import trace
from tests.lower.staged import stage_runtime

WINDOW = np.hanning(64)  # read on the way forward
MIX = np.random.default_rng(0).standard_normal((64, 64))  # and on the way back
RATE = np.linspace(0.01, 0.1, 64)  # and in the update


def step(weights, batch):
    def loss(weights):
        x = batch * WINDOW
        for w in weights:
            x = jnp.tanh(x @ MIX @ w)
        return jnp.square(x).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    return [w - RATE * g for w, g in zip(weights, grads, strict=True)], value


@pytest.mark.parametrize(("schedule", "devices"), [("1f1b", 1), ("1f1b", 4), ("zb-h1", 4)])
def test_captured_arrays_reach_the_programs_that_read_them(schedule, devices):
    rng = np.random.default_rng(1)
    weights = [0.1 * rng.standard_normal((64, 64)) for _ in range(4)]
    batch = rng.standard_normal((16, 64))
    traced = trace(step, (weights, batch), donate_argnums=0)
    assert len(traced.constants) == 3
    half = len(forward_ops(traced.step, time_step(traced.step, 4))) // 2
    runtime, _ = stage_runtime(traced, [0, half], 4, schedule, devices)
    runtime.load_state([np.asarray(w) for w in weights])
    (found,) = runtime.step([*weights, batch]).values()
    expected, value = jax.jit(step)(weights, batch)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    for output, w in runtime.fetch_state().items():
        np.testing.assert_allclose(w, expected[output], rtol=1e-10)
