"""Where examples meet, ``per_microbatch`` computes what GPipe does: micro-batches as batches, gradients averaged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from autopar.errors import CouplingError
from tests.lower.micro import agree, results
from tests.lower.test_emit import X, Y, descends, drawn

XY = {"x": X, "y": Y}


def gpipe(loss, params, batch, count):
    """The step of ``descends``, with the loss the mean over micro-batches of their own losses. Written by hand."""
    cut = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    values, grads = jax.vmap(jax.value_and_grad(loss), (None, 0))(params, cut)
    grads = jax.tree.map(lambda g: g.mean(0), grads)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), values.mean()


def standardised(h):
    return (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1e-3)


def normed(p, b):
    """Batch normalisation between two layers."""
    return jnp.mean((jnp.tanh(standardised(b["x"] @ p["w"]) * p["g"]) @ p["v"] - b["y"]) ** 2)


def one_by_one(p, b):
    """The same statistics, written with kept dims and one product."""
    h = b["x"] @ p["w"]
    scale = p["g"] * lax.rsqrt(jnp.var(h, axis=0, keepdims=True) + 1e-3)
    return jnp.mean((jnp.tanh((h - jnp.mean(h, axis=0, keepdims=True)) * scale) @ p["v"] - b["y"]) ** 2)


def held_fixed(p, b):
    """Statistics without a gradient: the gradient of g is a sum times a statistic, and no example reads it."""
    h = b["x"] @ p["w"]
    mean, scale = lax.stop_gradient((h.mean(0), lax.rsqrt(h.var(0) + 1e-3)))
    return jnp.mean((((h - mean) * (p["g"] * scale)) @ p["v"] - b["y"]) ** 2)


def in_a_loop(p, b):
    """Normalised layers in a scan."""

    def layer(h, w):
        return jnp.tanh(standardised(h @ w)), None

    h, _ = lax.scan(layer, b["x"], p["ws"])
    return jnp.mean((h @ p["w"] * p["g"]) ** 2)


def by_the_greatest(p, b):
    """Divided by the greatest entry of the micro-batch."""
    h = b["x"] @ p["w"]
    return jnp.mean((h / jnp.abs(h).max() * p["g"]) @ p["v"] ** 2)


def over_the_active(p, b):
    """A mean over as many as are positive: an integer that depends on parameters."""
    h = b["x"] @ p["w"]
    active = h > 0
    centred = h - jnp.sum(h * active) / jnp.sum(active)
    return jnp.mean(((centred * p["g"]) @ p["v"] - b["y"]) ** 2)


def penalised(p, b):
    """A loss with a term that is no mean over examples."""
    h = b["x"] @ p["w"]
    return jnp.mean((standardised(h) @ p["v"]) ** 2) + jnp.sum(h.mean(0) ** 2) * jnp.sum(p["g"] ** 2)


def branching(p, b):
    """Which weights are used depends on the micro-batch."""
    h = b["x"] @ p["w"]
    scale = lax.cond(h.mean() > 0, lambda: p["g"], lambda: 2 * p["g"] ** 2)
    return jnp.mean(((h * scale) @ p["v"] - b["y"]) ** 2)


LOSSES = (normed, one_by_one, held_fixed, in_a_loop, by_the_greatest, over_the_active, penalised, branching)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_it_is_what_gpipe_does(loss):
    params = {"w": drawn(2, 4, 5), "g": drawn(3, 5), "v": drawn(4, 5, 3), "ws": drawn(5, 2, 4, 4)}
    step = descends(loss)
    with pytest.raises(
        CouplingError, match=r"test_per_microbatch.py:\d+ .* test_per_microbatch.py:\d+ .*per_microbatch"
    ):
        results(step, (params, XY), 4)
    for count in (1, 2, 4):
        agree(results(step, (params, XY), count, per_microbatch=True), gpipe(loss, params, XY, count))


def test_a_step_that_does_not_couple_stays_exact():
    step = descends(lambda p, b: jnp.mean((jnp.tanh(b["x"] @ p["w"]) - b["y"]) ** 2))
    args = {"w": drawn(2, 4, 3)}, XY
    agree(results(step, args, 4, per_microbatch=True), jax.jit(step)(*args))


class Net(nn.Module):
    """As flax users write it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, param_dtype=jnp.float64)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9, param_dtype=jnp.float64)(x)
        return nn.Dense(3, param_dtype=jnp.float64)(nn.relu(x))


def test_running_statistics_are_averaged():
    net = Net()
    start = net.init(jax.random.key(0), X)

    def loss(params, stats, b):
        out, new = net.apply({"params": params, "batch_stats": stats}, b["x"], mutable=["batch_stats"])
        return jnp.mean((out - b["y"]) ** 2), new["batch_stats"]

    def step(state, b):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], state["batch_stats"], b)
        return {"params": jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], grads), "batch_stats": stats}, value

    def by_hand(state, b, count):
        cut = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), b)
        (values, stats), grads = jax.vmap(jax.value_and_grad(loss, has_aux=True), (None, None, 0))(
            state["params"], state["batch_stats"], cut
        )
        mean = lambda tree: jax.tree.map(lambda x: x.mean(0), tree)  # noqa: E731
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], mean(grads))
        return {"params": params, "batch_stats": mean(stats)}, values.mean()

    for count in (1, 2, 4):
        agree(results(step, (start, XY), count, per_microbatch=True), by_hand(start, XY, count))


def test_rows_gathered_from_the_whole_batch_are_not_estimated():
    def loss(p, b):
        h = jnp.tanh(b["x"] @ p["w"])
        return jnp.mean((h * h[b["partner"]]) ** 2)

    args = {"w": drawn(2, 4, 3)}, {"x": X, "partner": jnp.arange(len(X))[::-1]}
    for per_microbatch in (False, True):
        with pytest.raises(CouplingError, match=r"gather at test_per_microbatch.py"):
            results(descends(loss), args, 4, per_microbatch=per_microbatch)
