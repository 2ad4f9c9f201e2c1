"""Elementwise primitives: every operand dim is a result dim; scalars and size-1 dims broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autopar.ir import Rule, Value
from autopar.sharding.rules.site import FLOATS, Factors, Site, letter, linear_groups

# Functions of one element that hardware evaluates by range reduction and a polynomial of about ten terms.
TRANSCENDENTAL_FLOPS = 10.0
TRANSCENDENTAL = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos", "cosh",
    "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma", "igamma_grad_a", "igammac", "lgamma", "log",
    "log1p", "log2", "logistic", "polygamma", "pow", "regularized_incomplete_beta", "sin", "sinh", "tan",
    "tanh", "zeta",
})  # fmt: skip
ARITHMETIC = frozenset({
    "abs", "and", "ceil", "clamp", "clz", "eq", "eq_to", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
    "le_to", "lt", "lt_to", "max", "min", "ne", "nextafter", "not", "one_minus_square", "or", "population_count",
    "reduce_precision", "rem", "round", "rsqrt", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "sign", "sqrt", "square", "xor",
})  # fmt: skip
# 20 rounds of add, rotate (three operations) and xor, and five key injections, for two words.
THREEFRY_FLOPS = 120.0

ALONE = "alone"  # linear in each operand by itself: mul
JOINT = "joint"  # linear in all operands together: add
FIRST = "first"  # linear in operand 0: div
CASES = "cases"  # jointly linear in all but operand 0: select_n


def elementwise(linear: str = "", flops: float = 1.0) -> Callable[[Site], Rule]:
    """A builder for an elementwise primitive.

    Args:
      linear: ``ALONE``, ``JOINT``, ``FIRST``, ``CASES`` or empty.
      flops: operations per element of the result.
    """

    def build(site: Site) -> Rule:
        shape = site.results[0].shape
        f = Factors()
        out = [f.new(letter(d), n) for d, n in enumerate(shape)]

        def dims(v: Value) -> list[tuple[int, ...]]:
            return [out[d] if n == shape[d] else () for d, n in enumerate(v.shape)]

        n = len(site.operands)
        groups: dict[str, list[Sequence[int]]] = {
            "": [],
            ALONE: [(i,) for i in range(n)],
            JOINT: [range(n)],
            FIRST: [(0,)],
            CASES: [range(1, n)],
        }
        return f.rule(
            [dims(v) for v in site.operands],
            [dims(v) for v in site.results],
            linear_groups(site, *groups[linear]),
            flops=flops * site.results[0].size,
        )

    return build


def div(site: Site) -> Rule:
    """Division is linear in the numerator, integer division is not."""
    return elementwise(FIRST if site.results[0].dtype in FLOATS else "")(site)


def each(site: Site) -> Rule:
    """Every operand is a result unchanged, each with factors of its own (``optimization_barrier``)."""
    f = Factors()
    many = len(site.operands) > 1
    dims = [
        [f.new(letter(d) + (str(i) if many else ""), n) for d, n in enumerate(v.shape)]
        for i, v in enumerate(site.operands)
    ]
    # Of several, all would have to be partial sums at once: no reader wants that.
    return f.rule(dims, dims, () if many else linear_groups(site, (0,)))


def bitcast(site: Site) -> Rule:
    """Elementwise at equal width; otherwise the last dim of the wider-ranked side is the pieces of one element."""
    (x,), (y,) = site.operands, site.results
    f = Factors()
    shared = [f.new(letter(d), n) for d, n in enumerate(x.shape if len(x.shape) < len(y.shape) else y.shape)]

    def dims(v: Value) -> list[tuple[int, ...]]:
        return shared if len(v.shape) == len(shared) else [*shared, f.whole("bits", v.shape[-1])]

    return f.rule([dims(x)], [dims(y)])
