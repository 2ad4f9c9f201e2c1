"""The user marks where stages begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from tests.api import pipelines


def marked(state, x, y):
    """The step of :mod:`tests.api.pipelines` with its third layer (of four) marked, where no balanced cut is."""

    def loss(layers):
        h = x
        for k, layer in enumerate(layers):
            h = autopar.stage_boundary(h) if k == 3 else h
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return jnp.mean((h - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state["layers"])
    layers = jax.tree.map(lambda p, g: p - 0.1 * g, state["layers"], grads)
    return {"layers": layers, "count": state["count"] + 1}, {"loss": value}


ARGUMENTS = (pipelines.STATE, pipelines.X, pipelines.Y)


def test_stages_begin_at_the_marks_and_compute_the_same():
    options = autopar.Options(stages=2, microbatches=4)
    executable = autopar.compile(marked, *ARGUMENTS, cluster=pipelines.SLOW, options=options)
    assert [len(leaves) for leaves in _layers(executable.plan)] == [3, 1]
    state, metrics = executable(*ARGUMENTS)
    expected, seen = jax.jit(marked)(*ARGUMENTS)
    np.testing.assert_allclose(metrics["loss"], seen["loss"], rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), _arrays(state), expected)
    executable.close()


def _layers(plan):
    """Names of the weights that each stage keeps."""
    return [[a.name for a in stage.plan.arguments if a.name.endswith("['w']")] for stage in plan.stages]


def _arrays(state):
    return jax.tree.map(np.asarray, state)


def test_there_are_no_other_places():
    with pytest.raises(autopar.OptionError, match="has 2 units that may be a stage"):
        autopar.plan(marked, *ARGUMENTS, cluster=pipelines.SLOW, options=autopar.Options(stages=4, microbatches=4))


def test_a_mark_changes_nothing():
    x = {"a": jnp.arange(3.0), "b": (jnp.ones((2, 2)),)}
    same = jax.jit(autopar.stage_boundary)(x)
    jax.tree.map(np.testing.assert_array_equal, same, x)
    gradient = jax.grad(lambda x: jnp.sum(autopar.stage_boundary(x) ** 3))(jnp.arange(4.0))
    np.testing.assert_array_equal(gradient, 3 * jnp.arange(4.0) ** 2)
