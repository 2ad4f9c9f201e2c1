"""Steps that scan over stacked layers, in every way that people write them, and how to run a traced step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from autopar.lower import Unstacked, cut_parts, join_parts
from autopar.trace import Traced, trace
from tests.trace.oracle import evaluate

WIDTH, BATCH, CLASSES = 8, 12, 4


@dataclass(frozen=True)
class Case:
    """A step (state, batch) -> (state, metrics), and what to call it with."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    batch: Callable[[int], Any]

    @cached_property
    def traced(self) -> Traced:
        """The step as autopar reads it."""
        return trace(self.step, (self.state, self.batch(0)), donate_argnums=0, batch_argnums=1)

    @property
    def out_tree(self):
        """The structure of the result."""
        return self.traced.out_tree


def batch(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(BATCH, 6, WIDTH)), "y": rng.integers(0, CLASSES, BATCH)}


def stack(count, seed=0, width=WIDTH):
    k1, k2 = jax.random.split(jax.random.key(seed))
    return {
        "w1": jax.random.normal(k1, (count, width, 2 * width)) / 4,
        "b": jnp.zeros((count, 2 * width)),
        "w2": jax.random.normal(k2, (count, 2 * width, width)) / 6,
        "scale": jnp.ones((count, width)),
    }


def layer(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x + jnp.tanh(x * p["scale"] @ p["w1"] + p["b"]) @ p["w2"]


def head(seed=1):
    return {"out": jax.random.normal(jax.random.key(seed), (WIDTH, CLASSES)) / 3}


def loss_of(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x.mean(1) @ params["out"], y).mean()


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1))


def trained(params, loss, tx=CLIPPED, metrics=lambda params, grads, aux: {}):
    """A step of an optimizer on loss(params, batch, key) -> (loss, aux)."""
    # Copies: a leaf that is returned twice would be donated twice.
    state = {"params": params, "opt": tx.init(params), "key": jax.random.key_data(jax.random.key(7))}

    def train_step(state, batch):
        key, now = jax.random.split(jax.random.wrap_key_data(state["key"]))
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], batch, now)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "opt": opt, "key": jax.random.key_data(key)}
        return new, {"loss": value, **metrics(state["params"], grads, aux)}

    return Case(train_step, state, batch)


def _plain(count, body=layer, tx=CLIPPED, metrics=lambda params, grads, aux: {}, **scan):
    def loss(params, batch, key):
        x, ys = jax.lax.scan(lambda x, p: (body(p, x), (x * x).mean()), batch["x"], params["layers"], **scan)
        return loss_of(params, x, batch["y"]), ys

    return trained({"layers": stack(count), **head()}, loss, tx, metrics)


def _dropout(count):
    def loss(params, batch, key):
        def body(x, p_and_key):
            p, key = p_and_key
            y = layer(p, x)
            mask = jax.random.bernoulli(key, 0.8, y.shape)
            return jnp.where(mask, y / 0.8, 0.0), mask

        x, inside = jax.lax.scan(body, batch["x"], (params["layers"], jax.random.split(key, count)))
        outside = jax.random.bernoulli(key, 0.9, (count, WIDTH))  # drawn for all layers at once
        x, _ = jax.lax.scan(lambda x, m_p: (x * m_p[0] * m_p[1]["scale"], None), x, (outside, params["layers"]))
        return loss_of(params, x, batch["y"]), {"inside": inside, "outside": outside}

    return trained({"layers": stack(count), **head()}, loss, metrics=lambda params, grads, masks: masks)


def _per_layer(count):
    def metrics(params, grads, aux):
        return {
            "activity": aux,
            "norms": jnp.sqrt(sum((g**2).sum(range(1, g.ndim)) for g in jax.tree.leaves(grads["layers"]))),
            "largest": jnp.stack([jnp.abs(p).max() for p in jax.tree.leaves(params["layers"])]),
            "first": params["layers"]["w1"][0].sum() + grads["layers"]["w2"][-1].sum(),
        }

    return _plain(count, metrics=metrics)


def _shared(count):
    def loss(params, batch, key):
        def body(x, p):
            x = layer(p, x @ params["shared"])
            return x + (x @ params["out"]) @ params["out"].T, None

        x, _ = jax.lax.scan(body, batch["x"], params["layers"])
        return loss_of(params, x, batch["y"]), None

    shared = jnp.eye(WIDTH) + 0.1
    return trained({"layers": stack(count), "shared": shared, **head()}, loss)


def _encoder_decoder(count):
    def loss(params, batch, key):
        def encode(x, p):
            x = layer(p, x)
            return x, x

        def decode(carry, p_and_skip):
            x, memory = carry
            p, skip = p_and_skip
            return (layer(p, x + 0.1 * memory) + 0.2 * skip, memory), None

        memory, skips = jax.lax.scan(encode, batch["x"], params["encoder"])
        (x, _), _ = jax.lax.scan(decode, (memory, memory), (params["decoder"], skips), reverse=True)
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), x, params["deep"])
        return loss_of(params, x, batch["y"]), None

    params = {"encoder": stack(count, 3), "decoder": stack(count, 4), "deep": stack(2 * count, 5), **head()}
    return trained(params, loss)


def _inference(count):
    def predict(params, batch):
        x, caches = jax.lax.scan(lambda x, p: (layer(p, x), x[:, -1]), batch["x"], params["layers"])
        return {}, {"logits": x.mean(1) @ params["out"], "caches": caches}

    return Case(predict, {"layers": stack(count), **head()}, batch)


def _other_dim(count):
    """Layers stacked along the last dim, moved to the front for the scan."""

    def loss(params, batch, key):
        moved = jax.tree.map(lambda p: jnp.moveaxis(p, -1, 0), params["layers"])
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), batch["x"], moved)
        return loss_of(params, x, batch["y"]), None

    last = jax.tree.map(lambda p: jnp.moveaxis(p, 0, -1), stack(count))
    return trained({"layers": last, **head()}, loss)


def _averaged(count):
    """Parameters averaged over time, and steps that only accumulate."""
    tx = optax.MultiSteps(optax.chain(CLIPPED, optax.ema(0.9)), every_k_schedule=2)
    return _plain(count, tx=tx)


def _orthogonal(count):
    """Momentum brought near to orthogonal matrices by an iteration, as in Muon."""

    def orthogonal(g):
        def iterate(_, x):
            return 1.5 * x - 0.5 * x @ jnp.swapaxes(x, -1, -2) @ x

        return jax.lax.fori_loop(0, 3, iterate, g / (1 + jnp.sqrt((g**2).sum((-1, -2), keepdims=True))))

    stacks = optax.stateless(lambda g, _: jax.tree.map(lambda x: orthogonal(x) if x.ndim == 3 else x, g))
    return _plain(count, tx=optax.chain(optax.trace(0.9), stacks, optax.scale(-0.1)))


def _over_time(count):
    """A recurrence over time, with something learned per time, beside stacked layers."""

    def loss(params, batch, key):
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), batch["x"], params["layers"])

        def cell(h, x_t):
            h = jnp.tanh(x_t[0] + x_t[1] + h @ params["recurrent"])
            return h, h

        start = jnp.zeros((BATCH, WIDTH))
        _, hs = jax.lax.scan(cell, start, (jnp.moveaxis(x, 1, 0), params["times"]))
        return loss_of(params, jnp.moveaxis(hs, 0, 1), batch["y"]), None

    params = {"layers": stack(count), "recurrent": jnp.eye(WIDTH) / 2, "times": jnp.ones((6, WIDTH)), **head()}
    return trained(params, loss)


def _linen(count):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(2 * WIDTH, param_dtype=jnp.float64)(nn.LayerNorm(param_dtype=jnp.float64)(x))
            h = nn.Dense(WIDTH, param_dtype=jnp.float64)(nn.gelu(h))
            return x + nn.Dropout(0.1, deterministic=False)(h), None

    scanned = nn.scan(
        nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=count
    )()
    params = scanned.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, batch(0)["x"])["params"]

    def loss(params, batch, key):
        x, _ = scanned.apply({"params": params["layers"]}, batch["x"], rngs={"dropout": key})
        return loss_of(params, x, batch["y"]), None

    return trained({"layers": params, **head()}, loss)


CASES: dict[str, Callable[[int], Case]] = {
    "adamw": _plain,
    "adafactor": lambda n: _plain(n, tx=optax.adafactor(1e-2, min_dim_size_to_factor=4)),
    "adafactor-whole": lambda n: _plain(n, tx=optax.adafactor(1e-2)),
    "averaged": _averaged,
    "checkpoint": lambda n: _plain(n, body=jax.checkpoint(layer)),
    "dropout": _dropout,
    "encoder-decoder": _encoder_decoder,
    "inference": _inference,
    "lamb": lambda n: _plain(n, tx=optax.lamb(1e-2)),
    "linen": _linen,
    "orthogonal": _orthogonal,
    "other-dim": _other_dim,
    "over-time": _over_time,
    "per-layer": _per_layer,
    "reverse": lambda n: _plain(n, reverse=True),
    "shared": _shared,
    "unroll": lambda n: _plain(n, unroll=2),
}


def runner(traced: Traced):
    """The flat step, compiled for one device."""
    return jax.jit(lambda *flat: evaluate(traced, flat))


def run_unstacked(case: Case, found: Unstacked, steps: int = 3):
    """The state after some steps in chunks, and the metrics of each step."""
    return run_flat(case, found, runner(found.traced), steps)


def run_flat(case: Case, found: Unstacked, step, steps: int = 3):
    """The same by a flat step."""
    written = found.traced.step
    flat = cut_parts(found.inputs, leaves(case, 0))
    metrics = []
    for i in range(steps):
        fresh = cut_parts(found.inputs, leaves(case, i))
        for k in written.batch:
            flat[k] = fresh[k]
        out = step(*flat)
        for k, o in written.state:
            flat[k] = out[o]
        state, metric = jax.tree.unflatten(case.out_tree, join_parts(found.outputs, out))
        metrics.append(metric)
    return state, metrics


def leaves(case: Case, i: int):
    """The flat arguments of step ``i``, with the first state."""
    return [jnp.asarray(x) for x in jax.tree.leaves(((case.state, case.batch(i)), {}))]


def run_plain(case: Case, steps: int = 3):
    """The same by jax alone."""
    step, state, metrics = jax.jit(case.step), case.state, []
    for i in range(steps):
        new, metric = step(state, case.batch(i))
        state = new or state  # of inference, nothing comes back
        metrics.append(metric)
    return new, metrics


def worst_error(found, expected) -> float:
    """The largest max|a - b| / max|b| of any leaf; infinite where integers or booleans differ."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    return max(map(_error, jax.tree.leaves(found), jax.tree.leaves(expected)))


def _error(a, b) -> float:
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(a).all():
        return np.inf
    if not np.issubdtype(b.dtype, np.floating):
        return 0.0 if np.array_equal(a, b) else np.inf
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))


def _numbers(x):
    keyed = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keyed else x)
