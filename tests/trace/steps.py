"""Steps as users write them: each returns (function, args)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax

Case = tuple[Callable[..., Any], tuple[Any, ...]]
F = jnp.float64


def _rand(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), F)


def _sgd(params: Any, grads: Any) -> Any:
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def mlp_adam() -> Case:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    params = {"w1": _rand(0, 4, 8), "b1": jnp.zeros(8), "w2": _rand(1, 8, 3)}

    def loss_fn(p: Any, batch: Any) -> jax.Array:
        h = jax.nn.gelu(batch["x"] @ p["w1"] + p["b1"])
        return optax.softmax_cross_entropy_with_integer_labels(h @ p["w2"], batch["y"]).mean()

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": loss}

    return step, (params, tx.init(params), {"x": _rand(2, 16, 4), "y": jnp.arange(16) % 3})


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(2):
            x = nn.Dense(8, name=f"layer_{i}", param_dtype=F)(x)
            x = nn.LayerNorm(param_dtype=F)(nn.relu(x))
            x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(3, param_dtype=F)(x)


def linen_dropout() -> Case:
    model = _Linen()
    x = _rand(0, 16, 4)
    params = model.init(jax.random.key(0), x, False)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2))

    def step(state: TrainState, batch: Any, key: jax.Array) -> Any:
        dropout_key = jax.random.fold_in(key, state.step)

        def loss_fn(p: Any) -> jax.Array:
            logits = state.apply_fn({"params": p}, batch["x"], True, rngs={"dropout": dropout_key})
            return optax.softmax_cross_entropy(logits, batch["y"]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    return step, (state, {"x": x, "y": jax.nn.softmax(_rand(1, 16, 3))}, jax.random.key(7))


class _Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.l1 = nnx.Linear(4, 8, rngs=rngs, param_dtype=F)
        self.bn = nnx.BatchNorm(8, rngs=rngs, param_dtype=F)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.l2 = nnx.Linear(8, 3, rngs=rngs, param_dtype=F)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.l2(self.drop(nnx.relu(self.bn(self.l1(x)))))


def nnx_split() -> Case:
    model = _Nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))

    def step(state: Any, x: jax.Array, y: jax.Array) -> Any:
        model, optimizer = nnx.merge(graphdef, state)

        def loss_fn(m: _Nnx) -> jax.Array:
            return jnp.mean((m(x) - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer)), loss

    return step, (state, _rand(0, 16, 4), _rand(1, 16, 3))


def nnx_objects() -> Case:
    model = _Nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def step(model: _Nnx, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return model, optimizer, loss

    return step, (model, optimizer, _rand(0, 16, 4), _rand(1, 16, 3))


def equinox_checkpoint() -> Case:
    keys = jax.random.split(jax.random.key(0), 3)
    layers = [eqx.nn.Linear(8, 8, key=k, dtype=F) for k in keys]

    def loss_fn(layers: list[eqx.nn.Linear], x: jax.Array) -> jax.Array:
        for layer in layers:
            x = jax.checkpoint(lambda v, layer=layer: jnp.tanh(jax.vmap(layer)(v)))(x)
        return jnp.sum(x**2)

    def step(layers: Any, x: jax.Array) -> Any:
        loss, grads = eqx.filter_value_and_grad(loss_fn)(layers, x)
        return eqx.apply_updates(layers, jax.tree.map(lambda g: -0.1 * g, grads)), loss

    return step, (layers, _rand(1, 4, 8))


def scan_layers_remat() -> Case:
    params = {"w": _rand(0, 5, 8, 8) / 3, "b": jnp.zeros((5, 8), F)}
    table = np.linspace(0.5, 1.5, 8)  # captured inside the loop

    def loss_fn(p: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        @partial(jax.checkpoint, prevent_cse=False)
        def layer(carry: Any, inp: Any) -> Any:
            x, key = carry
            key, sub = jax.random.split(key)
            keep = jax.random.bernoulli(sub, 0.8, x.shape)
            x = jnp.where(keep, jnp.tanh(x @ inp["w"] + inp["b"]) * table, x)
            return (x, key), jnp.mean(x)

        (x, _), means = lax.scan(layer, (x, key), p)
        return jnp.sum(x**2) + jnp.sum(means)

    def step(p: Any, x: jax.Array, key: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(p, x, key)
        return _sgd(p, grads), loss

    return step, (params, _rand(1, 4, 8), jax.random.PRNGKey(3))


def while_and_cond() -> Case:
    bias = np.arange(6.0)

    def step(w: jax.Array, x: jax.Array, flag: jax.Array) -> Any:
        def newton(c: Any) -> Any:
            i, y = c
            return i + 1, y - 0.1 * (y @ w + bias)

        _, y = lax.while_loop(lambda c: (c[0] < 5) & (jnp.sum(c[1] * bias) < 100.0), newton, (0, x))
        z = lax.cond(flag, lambda v: jnp.sin(v) + bias, lambda v: v * 2.0, y)
        k = lax.switch(jnp.sum(flag), [lambda v: v, lambda v: v - bias, lambda v: v @ w], z)
        return w - 0.01 * jnp.mean(k), jnp.sum(z)

    return step, (_rand(0, 6, 6), _rand(1, 3, 6), jnp.array(True))


def grad_through_cond() -> Case:
    def loss_fn(w: jax.Array, x: jax.Array) -> jax.Array:
        y = lax.cond(jnp.sum(x) > 0, lambda v: jnp.sin(v @ w), lambda v: jnp.cos(v @ w), x)
        return jnp.sum(lax.fori_loop(0, 4, lambda i, v: v * 0.5 + i, y))

    def step(w: jax.Array, x: jax.Array) -> Any:
        loss, g = jax.value_and_grad(loss_fn)(w, x)
        return w - g, loss

    return step, (_rand(0, 6, 6), _rand(1, 3, 6))


@jax.custom_vjp
def _clipped(x: jax.Array) -> jax.Array:
    return x * jnp.abs(x)


_clipped.defvjp(lambda x: (_clipped(x), x), lambda x, g: (jnp.clip(g, -0.5, 0.5) * jnp.abs(x),))


def custom_vjp() -> Case:
    def step(w: jax.Array, x: jax.Array) -> Any:
        loss, g = jax.value_and_grad(lambda w: jnp.sum(_clipped(jax.nn.silu(x @ w))))(w)
        return w - g, loss, _clipped(x)  # once differentiated, once not

    return step, (_rand(0, 6, 6), _rand(1, 3, 6))


def moe_routing() -> Case:
    params = {"gate": _rand(0, 6, 4), "up": _rand(1, 4, 6, 8), "down": _rand(2, 4, 8, 6)}

    def loss_fn(p: Any, x: jax.Array) -> jax.Array:
        probs = jax.nn.softmax(x @ p["gate"])
        weights, index = lax.top_k(probs, 2)
        route = jnp.einsum("bk,bke->be", weights, jax.nn.one_hot(index, 4, dtype=x.dtype))
        h = jax.nn.relu(jnp.einsum("bd,edf->ebf", x, p["up"]))
        return jnp.mean(jnp.einsum("ebf,efd,be->bd", h, p["down"], route) ** 2)

    def step(p: Any, x: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(p, x)
        return _sgd(p, grads), loss

    return step, (params, _rand(3, 16, 6))


def random_kinds() -> Case:
    def step(key: jax.Array, raw: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return (
            jax.random.normal(keys[0], (5, 1, 7)),
            jax.random.bits(keys[1], (), jnp.uint8),
            jax.random.bits(raw, (300, 300), jnp.uint16),
            jax.random.bits(raw, (2, 3), jnp.uint64),
            jax.vmap(lambda k: jax.random.uniform(k, (4, 2)))(keys),
            jax.vmap(lambda k: jax.random.uniform(k, ()))(keys),
            jax.random.permutation(keys[2], 10),
            jax.random.categorical(keys[0], jnp.zeros((4, 5))),
            jax.random.truncated_normal(raw, -1.0, 1.0, (0, 3)),
            jax.random.fold_in(key, 3),
        )

    return step, (jax.random.key(11), jax.random.PRNGKey(5))


def nested_scan_reverse() -> Case:
    table = np.arange(4.0)

    def step(w: jax.Array, xs: jax.Array) -> Any:
        def outer(c: jax.Array, x: jax.Array) -> Any:
            def inner(d: jax.Array, _: None) -> Any:
                return jnp.tanh(d @ w) + table, None

            d, _ = lax.scan(inner, c + x, None, length=3)
            return d, jnp.sum(d)

        return jax.grad(lambda w_: jnp.sum(lax.scan(outer, xs[0], xs, reverse=True)[1] * w_[0, 0]))(w)

    return step, (_rand(0, 4, 4), _rand(1, 6, 4))


def chunked_gradients() -> Case:
    def step(w: jax.Array, xs: jax.Array) -> Any:
        def one(g: jax.Array, x: jax.Array) -> Any:
            loss, grad = jax.value_and_grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)
            return g + grad, loss

        g, losses = lax.scan(one, jnp.zeros_like(w), xs)
        return w - 0.1 * g, losses.mean()

    return step, (_rand(0, 4, 4), _rand(1, 3, 2, 4))


CASES: tuple[Callable[[], Case], ...] = (
    mlp_adam, linen_dropout, nnx_split, nnx_objects, equinox_checkpoint, scan_layers_remat, while_and_cond,
    grad_through_cond, custom_vjp, moe_routing, random_kinds, nested_scan_reverse, chunked_gradients,
)  # fmt: skip
