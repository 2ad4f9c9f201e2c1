"""Random small training steps: elementwise ops, products, reductions, sorts, gathers, loops and branches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

B, K = 8, 4

# Every op takes values of these kinds and makes one: b is the batch dim, k a feature dim, "" a scalar.
Op = tuple[str, str, Callable[..., jax.Array]]


def _scanned(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.scan(lambda c, row: (jnp.tanh(c * row + 0.1), None), x, w)[0]


def _scan_sums(x: jax.Array, start: jax.Array) -> jax.Array:
    return lax.scan(lambda c, col: (c + col.mean(), c), start, x.T)[1]


def _branch(x: jax.Array, s: jax.Array) -> jax.Array:
    return lax.cond(s > 0, lambda x: jnp.sin(x), lambda x: x * 0.5, x)


def _branch_sum(x: jax.Array, s: jax.Array) -> jax.Array:
    return lax.cond(s > 0, lambda x: x.sum(0), lambda x: jnp.cos(x).sum(0) + 1.0, x)


def _masked(x: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(jax.random.key(3), 0.7, x.shape)
    return jnp.where(keep, x / 0.7, 0.0)


OPS: tuple[Op, ...] = (
    ("bk", "bk", jnp.tanh),
    ("bk", "bk", _masked),
    ("bk", "bk", lambda x: jnp.sort(x, axis=1)),
    ("bk", "bk", lambda x: jnp.cumsum(x, axis=1)),
    ("bk", "bk", lambda x: jax.nn.softmax(x, axis=1)),
    ("bk", "bk", lambda x: lax.stop_gradient(x) * 0.5),
    ("bk", "bk", lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], axis=1)),
    ("bk", "bk", lambda x: x.reshape(B * K).reshape(B, K) + 1.0),
    ("bk", "bk", lambda x: x[::-1]),
    ("bk,bk", "bk", jnp.add),
    ("bk,bk", "bk", lambda x, y: jnp.where(x > y, x, 0.3 * y)),
    ("bk,kk", "bk", jnp.matmul),
    ("bk,kk", "bk", _scanned),
    ("bk,k", "bk", jnp.multiply),
    ("bk,b", "bk", lambda x, y: x * y[:, None]),
    ("bk,", "bk", lambda x, s: x - 0.1 * s),
    ("bk,", "bk", _branch),
    ("b", "bk", lambda x: jnp.broadcast_to(jnp.sin(x)[:, None], (B, K))),
    ("kk,b", "bk", lambda t, i: t[jnp.clip(jnp.abs(i * 2).astype(jnp.int32), 0, K - 1)]),
    ("k", "bk", lambda v: jnp.broadcast_to(v, (B, K))),
    ("bk,k", "b", jnp.matmul),
    ("bk", "b", lambda x: x.max(1)),
    ("bk", "b", lambda x: lax.top_k(x, 2)[0].sum(1)),
    ("b,b", "b", jnp.maximum),
    ("b", "b", lambda x: x[jnp.argsort(x)]),
    ("bk", "k", lambda x: x.mean(0)),
    ("bk", "k", lambda x: x.max(0)),
    ("bk", "k", lambda x: x.var(0)),
    ("bk,", "k", _scan_sums),
    ("bk,", "k", _branch_sum),
    ("bk,b", "k", lambda x, y: x.T @ y),
    ("k,k", "k", lambda a, b: a * 0.5 + b),
    ("k", "k", jnp.sin),
    ("bk,b", "kk", lambda x, i: jnp.zeros((K, K)).at[jnp.clip(jnp.abs(i * 2).astype(int), 0, K - 1)].add(x)),
    ("bk,bk", "kk", lambda x, y: x.T @ y * 0.1),
    ("kk,kk", "kk", lambda a, b: a @ b * 0.3),
    ("b", "", jnp.sum),
    ("b", "", jnp.min),
    ("bk", "", lambda x: jnp.sum(x > 0.1) * 0.1),
    ("k", "", jnp.mean),
    (",", "", lambda a, b: a / (1.0 + b * b)),
    ("", "", jnp.tanh),
)  # fmt: skip


def random_step(seed: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step with a gradient of a random loss, and what it is called with."""
    rng = np.random.default_rng(seed)
    lines = [_line(rng) for _ in range(int(rng.integers(3, 14)))]
    shown = rng.integers(0, 100, 3)
    params = {
        "kk": rng.standard_normal((K, K)),
        "k": rng.standard_normal(K),
        "": rng.standard_normal(),
    }
    batch = {"bk": rng.standard_normal((B, K)), "b": rng.standard_normal(B)}

    def loss(params: Any, batch: Any) -> Any:
        pool: dict[str, list[jax.Array]] = {kind: [jnp.asarray(x)] for kind, x in {**params, **batch}.items()}
        for (takes, makes, fun), picks in lines:
            # Late values are picked more often, so that ops build on each other.
            chosen = [pool[kind][-1 - int(len(pool[kind]) * p * p)] for kind, p in zip(takes.split(","), picks)]  # noqa: B905
            pool[makes].append(fun(*chosen))
        made = [x for xs in pool.values() for x in xs]
        value = sum(jnp.mean(jnp.tanh(xs[-1])) for kind, xs in pool.items() if "b" in kind or len(xs) > 1)
        return value, [made[i % len(made)] for i in shown]

    def step(params: Any, batch: Any) -> Any:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, metrics

    return step, (params, batch)


def _line(rng: np.random.Generator) -> tuple[Op, np.ndarray]:
    return OPS[int(rng.integers(len(OPS)))], rng.random(2)
