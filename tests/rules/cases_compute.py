"""Random contractions, convolutions, windows, gathers, scatters and linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.draw import Draw

Case = tuple[Callable, tuple]


def _dot(d: Draw) -> Case:
    sizes = {c: d.of((1, 2, 4, 6)) for c in "abmnkl"}
    batch = d.of(("", "a", "ab"))
    inner = d.of(("k", "k", "kl", ""))
    lhs = "".join(d.rng.permutation(list(batch + inner + d.of(("m", ""))))) if batch + inner else "m"
    rhs = "".join(d.rng.permutation(list(batch + inner + d.of(("n", ""))))) if batch + inner else "n"
    dims = (
        (tuple(map(lhs.index, inner)), tuple(map(rhs.index, inner))),
        (tuple(map(lhs.index, batch)), tuple(map(rhs.index, batch))),
    )
    x, y = ([sizes[c] for c in side] for side in (lhs, rhs))
    if d.chance(0.2):
        return (lambda x, y: lax.dot_general(x, y, dims)), (d.ints(x), d.ints(y))
    if d.chance(0.2):
        x, y = d.floats(x).astype("float32"), d.floats(y).astype("float32")
        return (lambda x, y: lax.dot_general(x, y, dims, preferred_element_type="float64")), (x, y)
    return (lambda x, y: lax.dot_general(x, y, dims)), (d.floats(x), d.floats(y))


def _ragged(d: Draw) -> Case:
    g, m, k, n = 3, d.of((4, 8)), d.of((2, 4)), d.of((2, 4))
    cut = sorted((d.int(0, m), d.int(0, m)))
    sizes = np.array([cut[0], cut[1] - cut[0], m - cut[1]], "int32")
    if d.chance():
        return lax.ragged_dot, (d.floats((m, k)), d.floats((g, k, n)), sizes)
    numbers = lax.RaggedDotDimensionNumbers((([0], [0]), ([], [])), [0], [])
    return (lambda x, y, s: lax.ragged_dot_general(x, y, s, numbers)), (d.floats((m, k)), d.floats((m, n)), sizes)


def _window(d: Draw, n: int) -> tuple[int, int, tuple[int, int], int, int]:
    """taps, stride, padding, base dilation, window dilation; often one that aligns."""
    kind = d.int(0, 6)
    if kind == 0:
        return 3, 1, (1, 1), 1, 1
    if kind == 1 and n % 2 == 0:
        return 3, 2, d.of(((1, 1), (0, 1), (1, 0))), 1, 1
    if kind == 2 and n % 2 == 0:
        return 2, 2, (0, 0), 1, 1
    if kind == 3:
        return 3, 1, (2, 2), 1, 2
    if kind == 4:
        return 4, 1, (2, 3), 2, 1  # transposed
    if kind == 5:
        return 5, 1, d.of(((2, 2), (4, 0), (0, 4))), 1, 1
    return d.int(1, 3), d.int(1, 2), (d.int(-1, 2), d.int(0, 2)), d.int(1, 2), d.int(1, 2)


def _conv(d: Draw) -> Case:
    while True:
        spatial = d.int(1, 2)
        sizes = [d.of((4, 6, 8, 8, 12)) for _ in range(spatial)]
        columns = [_window(d, n) for n in sizes]
        taps, strides, padding, base, spread = (tuple(c) for c in zip(*columns, strict=True))
        made = [
            ((n - 1) * b + 1 + sum(p) - ((t - 1) * w + 1)) // s + 1
            for n, t, s, p, b, w in zip(sizes, taps, strides, padding, base, spread, strict=True)
        ]
        if min(made) > 0:
            break
    batch, c, o = d.of((2, 4)), d.of((1, 2, 4)), d.of((1, 2, 4))
    features = batches = 1
    kind = d.int(0, 3)
    if kind == 0:
        features = d.of((2, 4))
    elif kind == 1:
        batches = 2
    lhs = (batch * (batches if d.chance() else 2), c * features, *sizes)
    lhs = (batch * batches, *lhs[1:])
    rhs = (o * features * batches, c, *taps)
    lhs_order, rhs_order, out_order = (d.permutation(spatial + 2) for _ in range(3))
    letters = "HW"[:spatial]
    numbers = lax.conv_dimension_numbers(
        tuple(np.take(lhs, lhs_order)),
        tuple(np.take(rhs, rhs_order)),
        ("".join(("NC" + letters)[i] for i in lhs_order), "".join(("OI" + letters)[i] for i in rhs_order),
         "".join(("NC" + letters)[i] for i in out_order)),
    )  # fmt: skip

    def conv(x, y):
        return lax.conv_general_dilated(
            x, y, strides, padding, base, spread, numbers, feature_group_count=features, batch_group_count=batches
        )

    return conv, (d.floats(np.take(lhs, lhs_order)), d.floats(np.take(rhs, rhs_order)))


def _pool(reduce: Callable, start: float) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        x, args = _pooled(d)
        return (lambda x: lax.reduce_window(x, start, reduce, *args)), (x,)

    return case


def _pooled(d: Draw):
    while True:
        shape = [d.of((2, 4, 8, 8, 12)) for _ in range(d.int(1, 3))]
        columns = [(1, 1, (0, 0), 1, 1) if d.chance(0.4) else _window(d, n) for n in shape]
        taps, strides, padding, base, spread = (tuple(c) for c in zip(*columns, strict=True))
        padding = tuple((max(0, a), max(0, b)) for a, b in padding)
        made = [
            ((n - 1) * b + 1 + sum(p) - ((t - 1) * w + 1)) // s + 1
            for n, t, s, p, b, w in zip(shape, taps, strides, padding, base, spread, strict=True)
        ]
        if min(made) > 0:
            return d.floats(shape), (taps, strides, padding, base, spread)


def _pool_any(d: Draw) -> Case:
    x, args = _pooled(d)
    if d.chance(0.7):
        return (lambda x, i: lax.reduce_window(x, i, lambda a, b: a + b + a * b * 0, *args)), (x, np.float64(0))

    def both(a, b):
        return a[0] + b[0], jnp.maximum(a[1], b[1]) + 0

    return (lambda x, y: lax.reduce_window((x, y), (np.float64(0), np.float64(-9)), both, *args)), (x, x + 1)


def _max_pool(d: Draw):
    shape = [d.of((4, 8)) for _ in range(d.int(1, 3))]
    columns = [d.of([(1, 1, (0, 0)), (2, 2, (0, 0)), (2, 2, (0, 0)), (3, 1, (1, 1))]) for _ in shape]
    taps, strides, padding = (tuple(c) for c in zip(*columns, strict=True))
    return d.floats(shape), lambda x: lax.reduce_window(x, -jnp.inf, lax.max, taps, strides, padding)


def _scatter_pool(d: Draw) -> Case:
    x, pool = _max_pool(d)
    made = jax.eval_shape(pool, x)
    return (lambda x, g: jax.vjp(pool, x)[1](g)), (x, d.floats(made.shape))


def _gather_pool(d: Draw) -> Case:
    x, pool = _max_pool(d)
    return (lambda x, t: jax.jvp(pool, (x,), (t,))), (x, d.floats(x.shape))


def _indexing(d: Draw):
    """Operand shape, index array, (collapsed, mapped, paired) dims, window sizes of operand dims."""
    rank = d.int(1, 3)
    shape = [d.of((2, 4, 6, 8)) for _ in range(rank)]
    batch = [d.of((1, 2, 4, 4)) for _ in range(d.int(1, 2))]
    roles = [d.of(("look", "look", "full", "cut", "pair", "mapped")) for _ in range(rank)]
    if roles.count("pair") > 1 or d.chance(0.6):
        roles = ["full" if r == "pair" else r for r in roles]
    if not {"look", "cut", "mapped"} & set(roles):
        roles[d.int(0, rank - 1)] = "look"
    pairs = [i for i, r in enumerate(roles) if r == "pair"]
    where = [d.int(0, len(batch) - 1) for _ in pairs]
    for i, w in zip(pairs, where, strict=True):
        batch[w] = shape[i]
    sizes = [
        1 if r in ("look", "pair") else n if r in ("full", "mapped") else d.int(1, n)
        for r, n in zip(roles, shape, strict=True)
    ]
    mapped = [i for i, r in enumerate(roles) if r in ("look", "cut", "mapped")]
    mapped = [mapped[i] for i in d.permutation(len(mapped))]
    dtype = d.of(("int32", "int32", "int64", "uint32", "uint8"))
    low = 0 if dtype.startswith("u") else -2
    columns = [d.ints((*batch, 1), low, shape[i] + 2, dtype) for i in mapped]
    collapsed = tuple(i for i, r in enumerate(roles) if r == "look")
    kept = [i for i, r in enumerate(roles) if r not in ("look", "pair")]
    windows = d.subset(range(len(kept) + len(batch)), 0)
    while len(windows) != len(kept):
        windows = d.subset(range(len(kept) + len(batch)), len(kept))[: len(kept)]
    return shape, np.concatenate(columns, -1), collapsed, tuple(mapped), (tuple(pairs), tuple(where)), sizes, windows


MODES = ("clip", "fill", "promise_in_bounds")


def _gather(d: Draw) -> Case:
    shape, index, collapsed, mapped, (pairs, where), sizes, windows = _indexing(d)
    numbers = lax.GatherDimensionNumbers(windows, collapsed, mapped, pairs, where)
    mode = d.of(MODES)
    x = d.of((d.floats, d.floats, d.ints, d.bools))(shape)
    fill = d.of((None, 0, 7)) if x.dtype != np.bool_ else None
    return (lambda x, i: lax.gather(x, i, numbers, tuple(sizes), mode=mode, fill_value=fill)), (x, index)


def _scatter(f: Callable, low: float = -2.0) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        shape, index, collapsed, mapped, (pairs, where), sizes, windows = _indexing(d)
        numbers = lax.ScatterDimensionNumbers(windows, collapsed, mapped, pairs, where)
        parts = iter([n for i, n in enumerate(sizes) if i not in collapsed and i not in pairs])
        loose = iter(index.shape[:-1])
        rank = len(windows) + index.ndim - 1
        updates = [next(parts) if i in windows else next(loose) for i in range(rank)]
        mode = d.of(MODES)
        return (lambda x, i, u: f(x, i, u, numbers, mode=mode)), (d.floats(shape), index, d.floats(updates, low))

    return case


def _set_scatter(d: Draw) -> Case:
    # Which of several updates to one place wins is not defined: they are all equal here.
    if d.chance(0.25):
        shape, index, collapsed, mapped, (pairs, _), _, _ = _indexing(d)
        if not pairs and len(collapsed) == len(shape):
            numbers = lax.ScatterDimensionNumbers((), collapsed, mapped)
            made = index.shape[:-1]
            return (lambda x, i: lax.scatter_apply(x, i, jnp.square, numbers, update_shape=made)), (
                d.floats(shape),
                index,
            )
    f, (x, index, updates) = _scatter(lax.scatter)(d)
    return f, (x, index, np.full_like(updates, 1.5))


def _embedding(d: Draw) -> Case:
    return (lambda t, i: jnp.take(t, i, axis=0)), (d.floats((8, 4)), d.ints((4, 2), -9, 9))


def _either(*cases: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    return lambda d: d.of(cases)(d)


def _matrices(d: Draw, rows: int, cols: int) -> np.ndarray:
    return d.floats((*d.shape(1, 2), rows, cols))


def _definite(d: Draw) -> np.ndarray:
    x = _matrices(d, 3, 3)
    return x @ np.swapaxes(x, -1, -2) + 4 * np.eye(3)


def _fft(d: Draw) -> Case:
    x = d.floats((*d.shape(1, 2), 4, 8))
    kind = d.int(0, 3)
    if kind == 0:
        return (lambda x: lax.fft(x, "fft", (4, 8))), (x + 1j,)
    if kind == 1:
        return (lambda x: lax.fft(x, "rfft", (8,))), (x,)
    if kind == 2:
        return (lambda x: lax.fft(x, "irfft", (14,))), (x + 1j,)
    return (lambda x: lax.fft(x, "ifft", (8,))), (x + 1j,)


def _solve(d: Draw) -> Case:
    a = np.tril(_matrices(d, 3, 3)) + 4 * np.eye(3)
    b = d.floats((*a.shape[:-2], 3, 2))
    return (lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True)), (a, b)


def _householder(d: Draw) -> Case:
    x = _matrices(d, 4, 3)
    return lax.linalg.householder_product, (x, d.floats((*x.shape[:-2], 3)))


def _tridiagonal(d: Draw) -> Case:
    shape = (*d.shape(1, 2), 4)
    below, above = d.floats(shape), d.floats(shape)
    below[..., 0] = 0
    above[..., -1] = 0
    return lax.linalg.tridiagonal_solve, (below, d.floats(shape, 5, 6), above, d.floats((*shape, 2)))


CASES: dict[str, Callable[[Draw], Case]] = {
    "cholesky": lambda d: ((lambda x: lax.linalg.cholesky(x, symmetrize_input=False)), (_definite(d),)),
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "eigh": lambda d: ((lambda x: lax.linalg.eigh(x, symmetrize_input=False)), (_definite(d),)),
    "fft": _fft,
    "gather": _either(_gather, _gather, _embedding),
    "householder_product": _householder,
    "lu": lambda d: (lax.linalg.lu, (_matrices(d, 3, 3),)),
    "lu_pivots_to_permutation": lambda d: (
        lambda p: lax.linalg.lu_pivots_to_permutation(p, 4), (d.ints((*d.shape(1, 2), 3), 3, 3),)),
    "qr": lambda d: ((lambda x: lax.linalg.qr(x, full_matrices=False)), (_matrices(d, 4, 3),)),
    "ragged_dot_general": _ragged,
    "reduce_window": _pool_any,
    "reduce_window_max": _pool(lax.max, -np.inf),
    "reduce_window_min": _pool(lax.min, np.inf),
    "reduce_window_sum": _pool(lax.add, 0.0),
    "scatter": _set_scatter,
    "scatter-add": _scatter(lax.scatter_add),
    "scatter-max": _scatter(lax.scatter_max),
    "scatter-min": _scatter(lax.scatter_min),
    "scatter-mul": _scatter(lax.scatter_mul),
    "scatter-sub": _scatter(lax.scatter_sub),
    "select_and_gather_add": _gather_pool,
    "select_and_scatter_add": _scatter_pool,
    "svd": lambda d: ((lambda x: lax.linalg.svd(x, full_matrices=False)), (_matrices(d, 4, 3),)),
    "triangular_solve": _solve,
    "tridiagonal_solve": _tridiagonal,
}  # fmt: skip
