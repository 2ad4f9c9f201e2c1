"""A small step whose pipelines are planned and compiled in seconds: four layers, a norm of all gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import autopar

_rng = np.random.default_rng(0)
STATE = {
    "layers": [{"w": _rng.standard_normal((16, 16)) / 4, "b": np.zeros(16)} for _ in range(4)],
    "count": np.int32(0),
}
SLOW = autopar.Cluster.uniform(4, 1e8, 1e9, 1e-7, 1e9)  # slow devices on fast links: it pays to split
X, Y = _rng.standard_normal((32, 16)), _rng.standard_normal((32, 16))


def step(state, x, y):
    """Gradient descent with the gradients clipped by the norm of all of them."""

    def loss(layers):
        h = x
        for layer in layers:
            h = jnp.tanh(h @ layer["w"] + layer["b"])
        return jnp.mean((h - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state["layers"])
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    layers = jax.tree.map(lambda p, g: p - 0.1 * g / jnp.maximum(norm, 1.0), state["layers"], grads)
    return {"layers": layers, "count": state["count"] + 1}, {"loss": value, "norm": norm}


@functools.cache
def planned(stages=2, microbatches=4, schedule="1f1b", cluster=SLOW, **options):
    """A plan of the step with stages."""
    found = autopar.Options(microbatches=microbatches, stages=stages, schedule=schedule, **options)
    return autopar.plan(step, STATE, X, Y, cluster=cluster, options=found)


def compiled(**asked):
    """The step under such a plan."""
    return autopar.compile(step, STATE, X, Y, plan=planned(**asked))
