"""A step in micro-batches computes what the step computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from autopar.errors import CouplingError
from tests.lower.micro import exact, results

B = 8


def drawn(seed, *shape):
    """Normal numbers in float64."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


X, Y = drawn(0, B, 4), drawn(1, B, 3)
XY = {"x": X, "y": Y}


def descends(loss):
    """The step that goes down the gradient of ``loss(params, batch)``."""

    def step(params, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step


def test_a_number_of_tokens_is_counted_before():
    def loss(p, b):
        return jnp.sum(jnp.tanh(b["x"] @ p["w"]) * b["mask"]) / jnp.sum(b["mask"])

    exact(descends(loss), {"w": drawn(2, 4, 3)}, {"x": X, "mask": (Y > 0.3) * 1.0}, counts=(1, 2, 4, 8))


def test_the_batch_may_be_sorted_by_its_data():
    def loss(p, b):
        return jnp.mean((b["x"][jnp.argsort(b["x"][:, 0])] @ p["w"] - b["y"]) ** 2)

    exact(descends(loss), {"w": drawn(2, 4, 3)}, XY)


def test_a_loop_that_joins_examples_is_refused():
    def loss(p, b):
        x = lax.fori_loop(0, 3, lambda _, x: jnp.sort(x, axis=0) * 0.5, b["x"])
        return jnp.mean((x @ p["w"]) ** 2)

    with pytest.raises(CouplingError, match=r"sort at test_emit.py:\d+ .*joins examples"):
        results(descends(loss), ({"w": drawn(2, 4, 3)}, {"x": X}), 2)


def test_gradients_leave_a_branch_as_sums():
    def loss(p, b):
        y = lax.cond(p["s"] > 0, lambda x: jnp.sin(x @ p["w"]), lambda x: (x @ p["w"]) ** 2, b["x"])
        return jnp.mean(y**2)

    for sign in (1.0, -1.0):
        exact(descends(loss), {"w": drawn(2, 4, 4), "s": jnp.array(sign)}, {"x": X})


def test_a_loop_may_hand_on_what_is_no_maximum_yet():
    def step(p, b):
        last, before = lax.scan(lambda c, x: (x.max(), c), p["start"], b["x"].T)
        grads = jax.grad(lambda p: jnp.sum((b["x"] @ p["w"]) ** 2))(p)
        return {"w": p["w"] - grads["w"], "start": p["start"]}, last, before

    exact(step, {"w": drawn(2, 4, 3), "start": jnp.array(-5.0)}, {"x": X - 10})
