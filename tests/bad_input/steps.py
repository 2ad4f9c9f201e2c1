"""A step that is planned and compiled in a blink, and what is asked of a message."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar

ONE = autopar.Options(mesh=(8,))
_rng = np.random.default_rng(0)
STATE = {"w": _rng.standard_normal((16, 32)), "v": _rng.standard_normal((32, 8))}
X, Y = _rng.standard_normal((64, 16)), _rng.standard_normal((64, 8))


def step(state, x, y):
    """Two layers, gradient descent."""

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value


def planned(fun=step, *args, cluster="cpu:8", options=ONE, **more):
    """A plan for the step above, or for another one."""
    return autopar.plan(fun, *(args or (STATE, X, Y)), cluster=cluster, options=options, **more)


def same(found, expected):
    """Whether two pytrees agree to rounding."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)
    return True


@contextlib.contextmanager
def refused(kind, *words):
    """An error of a kind whose one-line message holds all the words (regular expressions), in this order."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message and message.strip()
    at = 0
    for word in words:
        match = re.compile(word).search(message, at)
        assert match, f"{word!r} is missing, or out of order, in: {message}"
        at = match.end()
