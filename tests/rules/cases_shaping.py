"""Random ops that move elements, reduce, scan and sort."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.draw import Draw

Case = tuple[Callable, tuple]


def _broadcast(d: Draw) -> Case:
    shape = d.shape(1, 3)
    kept = d.subset(range(len(shape)))
    src = tuple(1 if d.chance(0.2) else shape[i] for i in kept)
    if not src and d.chance():
        return (lambda: lax.broadcast_in_dim(1.5, shape, ())), ()
    if src == shape:
        src = (1, *shape[1:])
        shape = (2, *shape[1:])
    return (lambda x: lax.broadcast_in_dim(x, shape, kept)), (d.numbers(src),)


def _reshape(d: Draw) -> Case:
    fixed = [
        ((8, 12), (96,)), ((96,), (8, 12)), ((4, 6), (6, 4)), ((4, 6), (2, 12)), ((3, 4, 5), (6, 10)),
        ((4, 1, 6), (24, 1)), ((2, 4, 6), (8, 2, 3)), ((6, 5, 8), (10, 3, 4, 2)), ((8,), (1, 8)), ((12, 2), (4, 6)),
        ((2, 8, 4), (4, 16)), ((1,), ()), ((5, 3, 8), (15, 2, 4)),
    ]  # fmt: skip
    if d.chance(0.7):
        old, new = d.of(fixed)
    else:
        factors = [d.of((2, 2, 3, 4)) for _ in range(4)]

        def group() -> tuple[int, ...]:
            cuts = sorted({0, 4, *d.subset((1, 2, 3))})
            return tuple(math.prod(factors[a:b]) for a, b in itertools.pairwise(cuts))

        old, new = group(), group()
        new = new if new != old else (*new, 1)
    return (lambda x: lax.reshape(x, new)), (d.numbers(old),)


def _transpose(d: Draw) -> Case:
    x = d.numbers(d.shape(2, 3))
    order = d.permutation(x.ndim)
    order = order if order != tuple(range(x.ndim)) else order[::-1]
    return (lambda x: lax.transpose(x, order)), (x,)


def _squeeze(d: Draw) -> Case:
    shape = list(d.shape(1, 2))
    at = d.int(0, len(shape))
    shape.insert(at, 1)
    return (lambda x: lax.squeeze(x, (at,))), (d.numbers(shape),)


def _iota(d: Draw) -> Case:
    shape = d.shape()
    dim = d.int(0, len(shape) - 1)
    dtype = d.of(("float64", "int32", "uint8", "bfloat16", "float32", "int64"))
    if d.chance(0.2):
        shape, dim, dtype = (1024,), 0, "bfloat16"
    return (lambda: lax.broadcasted_iota(dtype, shape, dim)), ()


def _rev(d: Draw) -> Case:
    x = d.numbers(d.shape())
    dims = d.subset(range(x.ndim), 1)
    return (lambda x: lax.rev(x, dims)), (x,)


def _concatenate(d: Draw) -> Case:
    shape = list(d.shape())
    dim = d.int(0, len(shape) - 1)
    parts = [d.floats([*shape[:dim], d.of((1, 2, 4)), *shape[dim + 1 :]]) for _ in range(d.int(2, 3))]
    return (lambda *x: lax.concatenate(x, dim)), tuple(parts)


def _stack(d: Draw) -> Case:
    shape = d.shape(1, 2)
    axis = d.int(0, len(shape))
    return (lambda *x: lax.stack(x, axis=axis)), tuple(d.floats(shape) for _ in range(d.int(2, 3)))


def _unstack(d: Draw) -> Case:
    x = d.floats(d.shape(2, 3))
    axis = d.int(0, x.ndim - 1)
    return (lambda x: lax.unstack(x, axis=axis)), (x,)


def _tile(d: Draw) -> Case:
    x = d.floats(d.shape(1, 2))
    reps = tuple(d.of((1, 2, 4)) for _ in x.shape)
    return (lambda x: lax.tile(x, reps)), (x,)


def _split(d: Draw) -> Case:
    x = d.floats((*d.shape(1, 2), 8))
    sizes = d.of(((4, 4), (1, 3, 4), (8,)))
    return (lambda x: lax.split(x, sizes, axis=x.ndim - 1)), (x,)


def _pad(d: Draw) -> Case:
    x = d.floats(d.shape())
    config = [d.of(((0, 0, 0), (0, 0, 0), (1, 2, 0), (0, 1, 1), (2, -1, 0))) if n > 1 else (1, 0, 0) for n in x.shape]
    if d.chance():
        return (lambda x: lax.pad(x, 0.0, config)), (x,)
    return (lambda x, v: lax.pad(x, v, config)), (x, np.float64(1.5))


def _slice(d: Draw) -> Case:
    x = d.numbers(d.shape())
    start, limit, step = [], [], []
    for n in x.shape:
        full = n == 1 or d.chance()
        start.append(0 if full else d.int(0, n - 2))
        limit.append(n if full else d.int(start[-1] + 1, n))
        step.append(1 if full else d.of((1, 2)))
    return (lambda x: lax.slice(x, start, limit, step if max(step) > 1 else None)), (x,)


def _dynamic_slice(d: Draw) -> Case:
    x = d.numbers(d.shape())
    sizes = [n if d.chance() else d.int(1, n) for n in x.shape]
    return (lambda x, *i: lax.dynamic_slice(x, i, sizes)), (x, *(np.int32(d.int(-2, 9)) for _ in x.shape))


def _dynamic_update_slice(d: Draw) -> Case:
    x = d.floats(d.shape())
    part = d.floats([n if d.chance() else d.int(1, n) for n in x.shape])
    return (lambda x, u, *i: lax.dynamic_update_slice(x, u, i)), (x, part, *(np.int32(d.int(-2, 9)) for _ in x.shape))


def _empty(d: Draw) -> Case:
    shape = d.shape()
    return (lambda: lax.empty(shape, "float64")), ()


def _reduce(name: str, make: str = "numbers") -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        shape = d.shape()
        x = (
            d.bools(shape)
            if make == "bits" and d.chance(0.7)
            else d.ints(shape)
            if make == "bits"
            else d.numbers(shape)
        )
        axes = d.subset(range(x.ndim), 1)
        primitive = getattr(lax, f"{name}_p")
        return (lambda x: _reduced(primitive, x, axes)), (x,)

    return case


def _reduced(primitive, x, axes):
    try:
        return primitive.bind(x, axes=axes, out_sharding=None)
    except TypeError:  # not every reduction takes a sharding
        return primitive.bind(x, axes=axes)


def _arg(f: Callable) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        x = d.numbers(d.shape())
        axis = d.int(0, x.ndim - 1)
        return (lambda x: f(x, axis, "int32")), (x,)

    return case


def _reduce_any(d: Draw) -> Case:
    x = d.floats(d.shape())
    axes = d.subset(range(x.ndim), 1)
    if d.chance():
        return (lambda x, i: lax.reduce(x, i, lambda a, b: a * b + a, axes)), (x, np.float64(0.5))

    def pick(a, b):
        keep = a[0] >= b[0]
        return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

    y = d.ints(x.shape)
    start = (np.float64(-9.0), np.int32(-99))
    return (lambda x, y: lax.reduce((x, y), start, pick, axes)), (x, y)


def _cumulative(f: Callable) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        x = d.floats(d.shape())
        axis, backward = d.int(0, x.ndim - 1), d.chance()
        return (lambda x: f(x, axis, backward)), (x,)

    return case


def _sort(d: Draw) -> Case:
    x = d.numbers(d.shape())
    dim = d.int(0, x.ndim - 1)
    if d.chance():
        return (lambda x: lax.sort(x, dimension=dim)), (x,)
    return (lambda x, y: lax.sort((x, y), dimension=dim, num_keys=1)), (x, d.floats(x.shape))


def _top_k(d: Draw) -> Case:
    x = d.floats(d.shape())
    axis = d.int(0, x.ndim - 1)
    k = d.int(1, x.shape[axis])
    return (lambda x: lax.top_k(x, k, axis=axis)), (x,)


def _key(f: Callable) -> Callable[[Draw], Case]:
    return lambda d: (lambda w: f(jax.random.wrap_key_data(w)), (d.ints((2,), 0, 99, "uint32"),))


CASES: dict[str, Callable[[Draw], Case]] = {
    "argmax": _arg(lax.argmax),
    "argmin": _arg(lax.argmin),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumlogsumexp": _cumulative(lax.cumlogsumexp),
    "cummax": _cumulative(lax.cummax),
    "cummin": _cumulative(lax.cummin),
    "cumprod": _cumulative(lax.cumprod),
    "cumsum": _cumulative(lax.cumsum),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "empty": _empty,
    "iota": _iota,
    "pad": _pad,
    "random_bits": _key(lambda k: jax.random.bits(k, (4, 2))),
    "random_clone": _key(jax.random.clone),
    "random_fold_in": _key(lambda k: jax.random.fold_in(k, 3)),
    "random_gamma": _key(lambda k: jax.random.gamma(k, 2.0, (4,))),
    "random_seed": lambda d: (lambda s: jax.random.key(s), (np.int32(d.int(0, 99)),)),
    "random_split": _key(lambda k: jax.random.split(k, 4)),
    "random_unwrap": _key(jax.random.key_data),
    "random_wrap": _key(lambda k: k),
    "reduce": _reduce_any,
    "reduce_and": _reduce("reduce_and", "bits"),
    "reduce_max": _reduce("reduce_max"),
    "reduce_min": _reduce("reduce_min"),
    "reduce_or": _reduce("reduce_or", "bits"),
    "reduce_prod": _reduce("reduce_prod"),
    "reduce_sum": _reduce("reduce_sum"),
    "reduce_xor": _reduce("reduce_xor", "bits"),
    "reshape": _reshape,
    "rev": _rev,
    "rng_bit_generator": lambda d: (lambda k: lax.rng_bit_generator(k, (4, 2)), (d.ints((4,), 0, 99, "uint32"),)),
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
