"""What a step derives from its batch alone may be wanted before the loop, in it, and after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.partition import forward_ops, time_step
from autopar.trace import trace
from tests.lower.staged import stage_runtime


def step(weights, batch):
    """Means over the examples that are marked; those of the others are reported as their number."""

    def loss(weights):
        x = batch
        for w in weights:
            x = jnp.tanh(x @ w)
        marked = jnp.max(batch, axis=1) > 1.5
        each = jnp.where(marked, jnp.square(x).sum(axis=1), 0.0)
        mean = each.sum() / jnp.maximum(marked.sum(), 1)
        return mean, jnp.where(marked, mean, -1.0)

    (value, each), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    return [w - 0.1 * g for w, g in zip(weights, grads, strict=True)], value, each


@pytest.mark.parametrize("stages", [1, 2])
def test_marks_are_counted_before_read_in_the_loop_and_joined_after(stages):
    rng = np.random.default_rng(1)
    weights = [0.3 * rng.standard_normal((8, 8)) for _ in range(4)]
    batch = rng.standard_normal((16, 8))
    traced = trace(step, (weights, batch), donate_argnums=0)
    timing = time_step(traced.step, 4)
    twice = {op.id for op in timing.before} & {op.id for op in timing.loop}
    assert twice and {v for op in timing.loop if op.id in twice for v in op.results} & set(timing.stacked)
    ops = len(forward_ops(traced.step, timing))
    cut = [s * ops // stages for s in range(stages)]
    runtime, _ = stage_runtime(traced, cut, 4)
    runtime.load_state([np.asarray(w) for w in weights])
    found = runtime.step([*weights, batch])
    expected, value, each = jax.jit(step)(weights, batch)
    np.testing.assert_allclose(found[len(weights)], value, rtol=1e-12)
    np.testing.assert_allclose(found[len(weights) + 1], each, rtol=1e-12)
    for output, w in runtime.fetch_state().items():
        np.testing.assert_allclose(w, expected[output], rtol=1e-10)
