"""A GPT-like step in float64 whose units are treated as asked: three layers, dropout on the weights of attention."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import autopar
from autopar.ir import NONE

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 3, 16, 2, 24, 8
_rng = np.random.default_rng(0)


def _layer():
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH)}
    shapes |= {"up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
    return {name: _rng.standard_normal(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}


STATE = {"layers": [_layer() for _ in range(LAYERS)], "key": np.uint32([1, 2])}
X, Y = _rng.standard_normal((BATCH, LENGTH, WIDTH)), _rng.standard_normal((BATCH, LENGTH, WIDTH))
ACCELERATORS = autopar.Cluster.uniform(4, 1e9, 1e10, 1e-7, 1e10)  # slow devices on fast links: it pays to split
CLUSTER = dataclasses.replace(ACCELERATORS, device=dataclasses.replace(ACCELERATORS.device, name="cpu"))


def softmax(scores):
    """As libraries write it."""
    return jax.nn.softmax(scores, axis=-1)


def by_logarithm(scores):
    """The same, with the logarithm of the sum."""
    return jnp.exp(scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True))


def attention(p, x, key, weigh, heads=HEADS, queries=LENGTH):
    """Causal attention with dropout on its weights; of fewer queries than positions, what they find on average."""
    q, k, v = (jnp.reshape(x @ p[n], (*x.shape[:2], heads, -1)) for n in "qkv")
    q = q[:, :queries]
    scores = jnp.einsum("bshd,bthd->bhst", q, k) / q.shape[-1] ** 0.5
    weights = weigh(jnp.where(jnp.tri(queries, LENGTH, dtype=bool), scores, -1e9))
    weights = jnp.where(jax.random.bernoulli(key, 0.9, weights.shape), weights / 0.9, 0.0)
    found = jnp.einsum("bhst,bthd->bshd", weights, v).reshape(x.shape[0], queries, -1) @ p["o"]
    return found if queries == LENGTH else jnp.mean(found, 1, keepdims=True)


def step(state, x, y, weigh=softmax, heads=HEADS, queries=LENGTH):
    """Gradient descent."""
    keys = jax.random.split(jax.random.wrap_key_data(state["key"]), LAYERS + 1)

    def loss(layers):
        h = x
        for p, key in zip(layers, keys, strict=False):
            h = h + attention(p, h / (1 + jnp.mean(h**2, -1, keepdims=True)), key, weigh, heads, queries)
            h = h + jnp.tanh(h @ p["up"]) @ p["down"]
        return jnp.mean((h - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state["layers"])
    layers = jax.tree.map(lambda p, g: p - 0.1 * g, state["layers"], grads)
    return {"layers": layers, "key": jax.random.key_data(keys[-1])}, value


@functools.cache
def planned(remat=NONE, stages=2, microbatches=4, schedule="1f1b", fun=step, cluster=CLUSTER, **options):
    """A plan of the step with stages."""
    found = autopar.Options(microbatches=microbatches, stages=stages, schedule=schedule, remat=remat, **options)
    return autopar.plan(fun, STATE, X, Y, cluster=cluster, options=found)


def treated(plan, words):
    """The same plan with its units treated in turn by ``words``, whatever that takes."""
    stages = []
    for stage in plan.stages:
        remat = tuple(words[u % len(words)] for u in range(*stage.units))
        stages.append(dataclasses.replace(stage, remat=remat))
    return dataclasses.replace(plan, stages=tuple(stages))
