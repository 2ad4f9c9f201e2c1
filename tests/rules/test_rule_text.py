"""Rules as people read them, their linearity and their FLOPs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from autopar.ir import Kind, Value
from autopar.sharding.rules import Site, rule_for
from autopar.sharding.strategy import actions
from tests.rules.machine import rule_of, trace


def rule(primitive, f, *shapes, dtype="float32"):
    return rule_of(trace(f, [np.ones(s, dtype) if isinstance(s, tuple) else s for s in shapes], primitive))


def site(primitive, *dtypes, result="float32", shape=(4, 8), **params):
    """A site made by hand, as a tracer makes it."""
    operands = tuple(Value(i, shape, d) for i, d in enumerate(dtypes))
    return Site(primitive, operands, (Value(9, shape, result),), params)


EMBED = np.zeros((4, 2), "int32")
LINES = [
    ("add", lambda x, y: x + y, ((4, 8), (4, 8)), "i j, i j -> i j"),
    ("add", lambda x: x + 2.0, ((4, 8),), "i j, . -> i j"),
    ("dot_general", jnp.dot, ((4, 6), (6, 8)), "m0 k0, k0 n0 -> m0 n0"),
    ("dot_general", lambda x, y: jnp.einsum("bsd,bdf->bsf", x, y), ((2, 4, 6), (2, 6, 8)),
     "b0 m0 k0, b0 k0 n0 -> b0 m0 n0"),
    ("reshape", lambda x: x.reshape(96), ((8, 12),), "a b -> (a b)"),
    ("reshape", lambda x: x.reshape(8, 12), ((96,),), "(a b) -> a b"),
    ("reshape", lambda x: x.reshape(6, 4), ((4, 6),), "(a b) d -> (a c) e"),
    ("reshape", lambda x: x.reshape(4, 1, 6), ((24,),), "(a b) -> a 1 b"),
    ("transpose", lambda x: x.T, ((4, 8),), "i j -> j i"),
    ("broadcast_in_dim", lambda x: jnp.broadcast_to(x, (3, 4)), ((4,),), "j -> i j"),
    ("reduce_sum", lambda x: x.sum(0), ((4, 8),), "i j -> j"),
    ("concatenate", lambda x, y: jnp.concatenate([x, y], 1), ((4, 2), (4, 6)), "i c0, i c1 -> i r0"),
    ("cumsum", lambda x: lax.cumsum(x, 1), ((4, 8),), "i j -> i j"),
    ("gather", lambda t: jnp.take(t, EMBED, axis=0), ((8, 6),), "v0 j, b0 b1 1 -> b0 b1 j"),
    ("scatter-add", lambda t, u: t.at[EMBED].add(u), ((8, 6), (4, 2, 6)), "v0 j, b0 b1 1, b0 b1 j -> v0 j"),
    ("iota", lambda: lax.broadcasted_iota("int32", (4, 8), 0), (), " -> i j"),
    ("conv_general_dilated", lambda x, k: lax.conv(x, k, (1, 1), "SAME"), ((2, 3, 8, 8), (5, 3, 3, 3)),
     "n c h w, o c kh kw -> n o h w"),
    ("conv_general_dilated", lambda x, k: lax.conv(x, k, (2, 2), "VALID"), ((2, 3, 8, 8), (5, 3, 2, 2)),
     "n c (h h_in) (w w_in), o c kh kw -> n o h w"),
    ("conv_general_dilated", lambda x, k: lax.conv(x, k, (1, 1), "VALID"), ((2, 3, 8, 8), (5, 3, 3, 3)),
     "n c h w, o c kh kw -> n o h_out w_out"),
]  # fmt: skip


@pytest.mark.parametrize(("primitive", "f", "shapes", "line"), LINES)
def test_lines(primitive, f, shapes, line):
    assert rule(primitive, f, *shapes).text == line


def test_depthwise_convolution_has_its_groups_as_major_factor():
    def conv(x, k):
        return lax.conv_general_dilated(
            x, k, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=6
        )

    found = rule("conv_general_dilated", conv, (2, 8, 6), (3, 1, 12))
    assert found.text == "n h g, kh 1 (g o) -> n h (g o)"
    assert next(f for f in found.factors if f.name == "h").halo == (1, 1)
    assert found.flops == 2 * (2 * 8 * 12) * 3


def test_kinds():
    kinds = {f.name: f.kind for f in rule("conv_general_dilated", *LINES[16][1:2], *LINES[16][2]).factors}
    assert kinds["h"] is Kind.HALO and kinds["c"] is Kind.REDUCTION and kinds["kh"] is Kind.WHOLE
    assert [f.kind for f in rule("sort", lambda x: lax.sort(x, dimension=1), (4, 8)).factors] == [
        Kind.PARALLEL,
        Kind.WHOLE,
    ]


@pytest.mark.parametrize(
    ("made", "linear"),
    [
        (site("mul", "float32", "float32"), ((0,), (1,))),
        (site("mul", "int32", "int32", result="int32"), ((0,), (1,))),
        (site("add", "float32", "float32"), ((0, 1),)),
        (site("sub", "bfloat16", "bfloat16", result="bfloat16"), ((0, 1),)),
        (site("div", "float32", "float32"), ((0,),)),
        (site("div", "int32", "int32", result="int32"), ()),
        (site("max", "float32", "float32"), ()),
        (site("exp", "float32"), ()),
        (site("convert_element_type", "bfloat16"), ((0,),)),
        (site("convert_element_type", "float64"), ()),
        (site("convert_element_type", "int32"), ()),
        (site("convert_element_type", "float32", result="int32"), ()),
        (site("select_n", "bool", "float32", "float32"), ((1, 2),)),
        (site("select_n", "bool", "bool", "bool", result="bool"), ()),
        (site("and", "int32", "int32", result="int32"), ()),
        (site("conj", "complex64", result="complex64"), ((0,),)),
        (site("real", "complex64"), ((0,),)),
        (site("cumsum", "float32", axis=0, reverse=False), ((0,),)),
        (site("cumprod", "float32", axis=0, reverse=False), ()),
    ],
)
def test_linearity(made, linear):
    assert rule_for(made).linear == linear


def test_a_literal_alone_is_not_worth_a_partial_sum():
    assert rule("mul", lambda x: x * 2.0, (4,)).linear == ((0,),)
    assert rule("add", lambda x: x + 2.0, (4,)).linear == ((0, 1),)
    assert rule("pad", lambda x: lax.pad(x, np.float32(0), ((1, 1, 0),)), (4,)).linear == ((0,),)
    assert rule("pad", lambda x, v: lax.pad(x, v, ((1, 1, 0),)), (4,), ()).linear == ((0, 1),)


def test_a_gather_that_fills_with_another_number_is_not_linear():
    def take(fill):
        return rule("gather", lambda x: x.at[jnp.array([1, 9])].get(mode="fill", fill_value=fill), (4,))

    assert take(0).linear == take(jnp.nan).linear == ((0,),)
    assert take(7.0).linear == ()


def test_flops():
    assert rule("dot_general", jnp.dot, (4, 6), (6, 8)).flops == 2 * 4 * 6 * 8
    assert rule("add", jnp.add, (4, 6), (4, 6)).flops == 24
    assert rule("exp", jnp.exp, (4, 6)).flops == 240
    assert rule("reshape", lambda x: x.reshape(24), (4, 6)).flops == 0


def test_scatter_add_keeps_its_operand_partial_where_the_updates_are_split():
    found = rule("scatter-add", lambda t, u: t.at[EMBED].add(u), (8, 6), (4, 2, 6))
    assert found.accumulators == (0,)
    split = next(a for a in actions(found) if a.name == "b0")
    assert split.operands == (-2, 0, 0) and split.results == (-2,)


def test_unknown_primitives_have_no_rule():
    assert rule_for(site("my_kernel", "float32")) is None


def test_random_keys_are_known_and_whole():
    found = rule_of(
        trace(lambda w: jax.random.bits(jax.random.wrap_key_data(w), (4,)), [np.zeros(2, "uint32")], "random_bits")
    )
    assert all(f.kind is Kind.WHOLE for f in found.factors)
