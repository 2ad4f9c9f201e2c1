"""How much arithmetic a function is: multiplications and additions of its matrix products and convolutions.

What a published count of FLOPs is about; elementwise work, which is limited by memory, is left out.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of matrix products and convolutions in one call, found by tracing: nothing is computed.

    A scan counts as often as it runs, a conditional as its dearest branch, and the body of a `while`, whose trips
    are not known, once.

    Args:
        function: any jax function.
        *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        Two for each multiplication and addition.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jax.ShapeDtypeStruct((4, 5), "float32"), jax.ShapeDtypeStruct((5, 6), "float32")
        >>> count_flops(jnp.dot, a, b)
        240
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = _shape(equation.invars[0])
            return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[dim] for dim in contracted)
        case "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs
        case "scan":
            return params["length"] * _of_jaxpr(params["jaxpr"].jaxpr)
        case "cond":
            return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
        case _:
            return sum(map(_of_jaxpr, _inner(params)))


def _shape(x: Any) -> tuple[int, ...]:
    return x.aval.shape


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x
