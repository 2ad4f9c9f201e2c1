"""Micro-batches that the batch cannot be cut into, and steps that cannot be cut."""

import jax
import jax.numpy as jnp
import pytest

import autopar
from tests.bad_input.steps import STATE, X, Y, planned, refused, step


def cut(microbatches, x=X, y=Y, fun=step, **more):
    return planned(fun, STATE, x, y, options=autopar.Options(mesh=(8,), microbatches=microbatches, **more))


def test_a_count_that_does_not_divide_the_batch():
    with refused(
        autopar.PlanError, "a batch of 64 \\(x, y\\)", "3 equal micro-batches", "1, 2, 4, 8, 16, 32, 64", "of 3"
    ):
        cut(3)
    with refused(autopar.PlanError, "a batch of 64", "128 equal", "64; or make the batch a multiple of 128"):
        cut(128)


def test_too_few_examples_for_every_device():
    words = ("strategy 'data'", "8 devices", "a batch of 48 in 4 micro-batches leaves 12", "multiple of 32")
    with refused(autopar.PlanError, *words, "microbatches=1 or 2 or 3 or 6", "'auto'"):
        cut(4, X[:48], Y[:48], strategy="data")
    with refused(autopar.PlanError, "leaves 3 examples", "multiple of 32, or strategy 'auto'"):
        cut(4, X[:12], Y[:12], strategy="data")
    assert cut(4, X[:48], Y[:48]).microbatches == 4


def test_no_batch():
    def rest(state):
        return jax.tree.map(lambda w: 0.9 * w, state)

    with refused(autopar.PlanError, "2 micro-batches were asked for", "rest has no argument that holds data"):
        planned(rest, STATE, options=autopar.Options(mesh=(8,), microbatches=2))


def whitened(state, x, y):
    def loss(p):
        h = x @ p["w"]
        mean = h.mean(0)
        return jnp.mean(((h - mean) @ p["v"] - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value


def test_a_step_that_couples_its_batch_names_both_lines():
    first = whitened.__code__.co_firstlineno
    places = (rf"sub at test_microbatches.py:{first + 4} \(loss\)", rf"reduce_sum at test_microbatches.py:{first + 3} ")
    with refused(autopar.CouplingError, "whitened couples", "4 micro-batches", *places, "per_microbatch=True"):
        cut(4, fun=whitened)
    assert cut(4, fun=whitened, per_microbatch=True).per_microbatch


def contrast(state, x, y):
    def loss(p):
        z = jnp.tanh(x @ p["w"])
        return jnp.mean(jax.nn.logsumexp(z @ z.T, axis=1))

    value, grads = jax.value_and_grad(loss)(state)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value


@pytest.mark.parametrize("per_microbatch", [False, True])
def test_a_product_of_the_batch_with_itself(per_microbatch):
    line = contrast.__code__.co_firstlineno + 3
    with refused(
        autopar.CouplingError, "4 micro-batches", rf"dot_general at test_microbatches.py:{line} \(loss\) joins"
    ):
        cut(4, fun=contrast, per_microbatch=per_microbatch)
