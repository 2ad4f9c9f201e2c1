"""Random ops, one generator per elementwise primitive: draw -> (function, arguments)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.random import threefry2x32_p

from tests.rules.draw import Draw

Case = tuple[Callable, tuple]


def unary(f: Callable, low: float = -2.0, high: float = 2.0) -> Callable[[Draw], Case]:
    return lambda d: (f, (d.floats(d.shape(), low, high),))


def binary(f: Callable, low: float = -2.0, high: float = 2.0) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        shape = d.shape()
        x, y = d.floats(shape, low, high), d.floats(shape, low, high)
        kind = d.int(0, 4)
        if kind == 0:
            return (lambda x: f(x, 1.25)), (x,)
        if kind == 1:
            return (lambda y: f(1.25, y)), (y,)
        return f, (x, y)

    return case


def integral(f: Callable, low: int = -9, high: int = 9, dtypes=("int32", "int64", "uint8")) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        shape, dtype = d.shape(), d.of(dtypes)
        bottom = 0 if dtype.startswith("u") else low
        return f, (d.ints(shape, bottom, high, dtype), d.ints(shape, bottom, high, dtype))

    return case


def bits(f: Callable) -> Callable[[Draw], Case]:
    def case(d: Draw) -> Case:
        if d.chance():
            shape = d.shape()
            return f, (d.bools(shape), d.bools(shape))
        return integral(f)(d)

    return case


def either(*cases: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    return lambda d: d.of(cases)(d)


def _since(name: str) -> Callable:
    """A function of jax 0.11; in an older jax it makes no op, and the case is skipped."""
    return getattr(lax, name, None) or (lambda x: pytest.skip(f"this jax has no lax.{name}"))


def _one(f: Callable, make: Callable) -> Callable[[Draw], Case]:
    return lambda d: (f, (make(d, d.shape()),))


def _ints(d: Draw, shape):
    return d.ints(shape)


def _complexes(d: Draw, shape):
    return d.complexes(shape)


def _clamp(d: Draw) -> Case:
    x = d.floats(d.shape())
    if d.chance():
        return lax.clamp, (-0.5, x, 0.75)
    return lax.clamp, (d.floats(x.shape, -1, 0), x, d.floats(x.shape, 0, 1))


def _select(d: Draw) -> Case:
    shape = d.shape()
    if d.chance(0.3):
        return lax.select_n, (d.ints(shape, 0, 2), d.floats(shape), d.floats(shape), d.floats(shape))
    return lax.select_n, (d.bools(() if d.chance() else shape), d.floats(shape), d.floats(shape))


def _convert(d: Draw) -> Case:
    src, dst = d.of([("float32", "float64"), ("float64", "float32"), ("int32", "float64"), ("float64", "int32")])
    return (lambda x: lax.convert_element_type(x, dst)), (d.floats(d.shape()).astype(src),)


def _bitcast(d: Draw) -> Case:
    shape = d.shape()
    src, dst = d.of([("float64", "int64"), ("float64", "int32"), ("int32", "int64"), ("uint8", "int8")])
    shape = (*shape, 2) if (src, dst) == ("int32", "int64") else shape
    return (lambda x: lax.bitcast_convert_type(x, dst)), (d.ints(shape, 0, 9).astype(src),)


def _threefry(d: Draw) -> Case:
    shape = d.shape(1, 2)
    kind = d.int(0, 2)
    key = [(), (1,) * len(shape), shape][kind]
    words = [d.ints(key, 0, 99, "uint32"), d.ints(key, 0, 99, "uint32")]
    return (lambda *w: threefry2x32_p.bind(*w)), (
        *words,
        d.ints(shape, 0, 99, "uint32"),
        d.ints(shape, 0, 99, "uint32"),
    )


def _barrier(d: Draw) -> Case:
    shapes = [d.shape() for _ in range(d.int(1, 2))]
    return (lambda *x: lax.optimization_barrier(x)), tuple(d.floats(s) for s in shapes)


def _put(d: Draw) -> Case:
    return (lambda x: jax.device_put(x)), (d.floats(d.shape()),)


def _named(d: Draw) -> Case:
    return (lambda x: checkpoint_name(x, "kept")), (d.floats(d.shape()),)


def _summed(d: Draw) -> Case:
    # Made by transposing a fan-out.
    shape = d.shape()
    fan = jax.linear_transpose(lambda z: (z, z), jnp.zeros(shape))
    return (lambda x, y: fan((x, y))), (d.floats(shape), d.floats(shape))


def _constrained(d: Draw) -> Case:
    x = d.floats(d.shape())
    mesh = jax.make_mesh((1,), ("a",), devices=jax.devices()[:1])
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return (lambda x: jax.lax.with_sharding_constraint(x, spec)), (x,)


def _laid_out(d: Draw) -> Case:
    x = d.floats(d.shape(2, 2))
    layout = Layout(major_to_minor=(1, 0))
    return (lambda x: with_layout_constraint(x, layout)), (x,)


def _betainc(d: Draw) -> Case:
    shape = d.shape()
    return lax.betainc, (d.floats(shape, 0.5, 2), d.floats(shape, 0.5, 2), d.floats(shape, 0.1, 0.9))


CASES: dict[str, Callable[[Draw], Case]] = {
    "abs": unary(lax.abs),
    "acos": unary(lax.acos, -0.9, 0.9),
    "acosh": unary(lax.acosh, 1.1, 3),
    "add": either(binary(lax.add), integral(lax.add), _one(lambda x: x + 2, _ints)),
    "add_any": _summed,
    "and": bits(lax.bitwise_and),
    "asin": unary(lax.asin, -0.9, 0.9),
    "asinh": unary(lax.asinh),
    "atan": unary(lax.atan),
    "atan2": binary(lax.atan2),
    "atanh": unary(lax.atanh, -0.9, 0.9),
    "bessel_i0e": unary(lax.bessel_i0e),
    "bessel_i1e": unary(lax.bessel_i1e),
    "bitcast_convert_type": _bitcast,
    "cbrt": unary(lax.cbrt),
    "ceil": unary(lax.ceil),
    "clamp": _clamp,
    "clz": _one(lax.clz, _ints),
    "complex": binary(lax.complex),
    "conj": _one(lax.conj, _complexes),
    "convert_element_type": _convert,
    "copy": unary(lambda x: jnp.array(x, copy=True)),
    "cos": unary(lax.cos),
    "cosh": unary(lax.cosh),
    "device_put": _put,
    "digamma": unary(lax.digamma, 0.5, 3),
    "div": either(binary(lax.div, 0.5, 2), integral(lax.div, 1, 9, ("int32", "int64"))),
    "eq": integral(lax.eq, -1, 1),
    "eq_to": integral(lambda x, y: lax.eq_to_p.bind(x, y), -1, 1),
    "erf": unary(lax.erf),
    "erf_inv": unary(lax.erf_inv, -0.9, 0.9),
    "erfc": unary(lax.erfc),
    "exp": unary(lax.exp),
    "exp2": unary(lax.exp2),
    "expm1": unary(lax.expm1),
    "floor": unary(lax.floor),
    "ge": binary(lax.ge),
    "gt": binary(lax.gt),
    "igamma": binary(lax.igamma, 0.5, 2),
    "igamma_grad_a": binary(lax.igamma_grad_a, 0.5, 2),
    "igammac": binary(lax.igammac, 0.5, 2),
    "imag": _one(lax.imag, _complexes),
    "integer_pow": unary(lambda x: lax.integer_pow(x, 3)),
    "is_finite": unary(lax.is_finite),
    "layout_constraint": _laid_out,
    "le": binary(lax.le),
    "le_to": binary(lambda x, y: lax.le_to_p.bind(x, y)),
    "lgamma": unary(lax.lgamma, 0.5, 3),
    "log": unary(lax.log, 0.1, 3),
    "log1p": unary(lax.log1p, -0.5, 3),
    "log2": unary(_since("log2"), 0.1, 3),
    "logistic": unary(lax.logistic),
    "lt": binary(lax.lt),
    "lt_to": binary(lambda x, y: lax.lt_to_p.bind(x, y)),
    "max": either(binary(lax.max), integral(lax.max)),
    "min": either(binary(lax.min), integral(lax.min)),
    "mul": either(binary(lax.mul), integral(lax.mul), binary(lax.mul)),
    "name": _named,
    "ne": integral(lax.ne, -1, 1),
    "neg": either(unary(lax.neg), _one(lax.neg, _ints), _one(lax.neg, _complexes)),
    "nextafter": binary(lax.nextafter),
    "not": either(_one(lax.bitwise_not, _ints), _one(lax.bitwise_not, lambda d, s: d.bools(s))),
    "optimization_barrier": _barrier,
    "or": bits(lax.bitwise_or),
    "polygamma": binary(lambda x, y: lax.polygamma(lax.round(x), y), 1, 3),
    "population_count": _one(lax.population_count, _ints),
    "pow": binary(lax.pow, 0.5, 2),
    "real": _one(lax.real, _complexes),
    "reduce_precision": unary(lambda x: lax.reduce_precision(x, 8, 7)),
    "regularized_incomplete_beta": _betainc,
    "rem": either(binary(lax.rem, 0.5, 2), integral(lax.rem, 1, 9, ("int32", "int64"))),
    "round": unary(lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)),
    "rsqrt": unary(lax.rsqrt, 0.1, 3),
    "select_n": _select,
    "sharding_constraint": _constrained,
    "shift_left": integral(lax.shift_left, 0, 3),
    "shift_right_arithmetic": integral(lax.shift_right_arithmetic, 0, 3),
    "shift_right_logical": integral(lax.shift_right_logical, 0, 3),
    "sign": unary(lax.sign),
    "sin": unary(lax.sin),
    "sinh": unary(lax.sinh),
    "sqrt": unary(lax.sqrt, 0.1, 3),
    "one_minus_square": unary(_since("one_minus_square"), -1, 1),
    "square": either(unary(lax.square), _one(lax.square, _ints)),
    "sub": either(binary(lax.sub), integral(lax.sub)),
    "tan": unary(lax.tan, -1, 1),
    "tanh": unary(lax.tanh),
    "threefry2x32": _threefry,
    "xor": bits(lax.bitwise_xor),
    "zeta": binary(lax.zeta, 1.5, 3),
}
