"""Rules that users write: what they may say, and what they are told when it cannot be right."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

from autopar.errors import RuleError
from autopar.ir import Kind, Value
from autopar.sharding.rules import Site, register_rule, rule_for, unregister_rule
from tests.rules.machine import MESHES, check, rule_of, trace


def primitive(name, f, out):
    """A user's primitive that computes ``f``."""
    p = Primitive(name)
    p.def_impl(jax.jit(f))
    p.def_abstract_eval(lambda *avals: avals[0].update(shape=out(*(a.shape for a in avals))))
    mlir.register_lowering(p, mlir.lower_fun(f, multiple_results=False))
    return p


MATMUL = primitive("user_matmul", lambda x, y: x @ y, lambda x, y: (x[0], y[1]))
BLUR = primitive("user_blur", lambda x: jnp.convolve(x, jnp.array([1.0, 2.0, 4.0]), "same"), lambda x: x)
FLAT = primitive("user_flat", lambda x: x.reshape(-1), lambda x: (x[0] * x[1],))


@pytest.fixture(autouse=True)
def forget():
    yield
    for p in (MATMUL, BLUR, FLAT, "add"):
        unregister_rule(p)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_matmul_is_proven_like_our_own(mesh):
    register_rule(MATMUL, "m k, k n -> m n", reduce={"k": "sum"}, linear=[(0,), (1,)],
                  flops=lambda size: 2.0 * size["m"] * size["k"] * size["n"])  # fmt: skip
    traced = trace(MATMUL.bind, (np.random.rand(8, 4), np.random.rand(4, 8)), "user_matmul")
    assert rule_of(traced).flops == 2 * 8 * 4 * 8
    assert check(traced, mesh, seed=0) > 1


@pytest.mark.parametrize("mesh", MESHES)
def test_a_halo_is_fetched_and_the_result_cropped(mesh):
    register_rule(BLUR, "n -> n", halo={"n": (1, 1)}, linear=[(0,)])
    assert check(trace(BLUR.bind, (np.random.rand(16),), "user_blur"), mesh, seed=0) > 1


def test_a_compound_dim_and_its_sizes():
    register_rule(FLAT, "a b -> (a b)")
    found = rule_of(trace(FLAT.bind, (np.ones((4, 6)),), "user_flat"))
    assert found.text == "a b -> (a b)" and [f.size for f in found.factors] == [4, 6]


def test_a_rule_of_the_user_comes_first():
    register_rule("add", "i, i -> i", whole=["i"])
    values = [Value(i, (4,), "float32") for i in range(3)]
    assert rule_for(Site("add", tuple(values[:2]), (values[2],))).factors[0].kind is Kind.WHOLE


def test_a_dim_of_a_result_alone_is_whole():
    register_rule("user_new", "i -> i 1 j")
    found = rule_for(Site("user_new", (Value(0, (4,), "float32"),), (Value(1, (4, 1, 3), "float32"),)))
    assert found.text == "i -> i 1 j" and found.factors[1].kind is Kind.WHOLE


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("m k, k n", {}, "has no '->'"),
        ("m k, k n -> m n", {}, "'k' is in no result. Say reduce={'k': 'sum'}"),
        ("m k -> m", {"reduce": {"k": "mean"}}, "combines by 'mean'; it can be sum, max or min"),
        ("m k -> m k", {"reduce": {"k": "sum"}}, "cannot be a dim of a result"),
        ("m k -> m k, m", {}, "'k' is in some results but not in all"),
        ("m m -> m", {}, "'m' stands twice"),
        ("(m k -> m", {}, "Parentheses must pair up"),
        ("m -> m", {"whole": ["q"]}, "has no factor 'q'"),
        ("m-n -> m", {}, "'m-n' is no name"),
        ("m -> m", {"linear": [(1,)]}, "names operands beyond the 1 there are"),
        ("m, h -> m h", {"halo": {"h": (1, 1)}}, "must be a dim of operand 0"),
    ],
)
def test_a_rule_that_cannot_be_right_is_refused(text, more, said):
    with pytest.raises(RuleError, match=re.escape(said)):
        register_rule("user_bad", text, **more)


@pytest.mark.parametrize(
    ("text", "shapes", "said"),
    [
        ("i, i -> i", [(4,)], "names 2 operands, the op has 1"),
        ("i j -> i", [(4,)], "gives operand 0 2 dims"),
        ("i -> i", [(4,), (5,)], "'i' of result 0 should be 4, the array has 5"),
        ("(a b) -> (a b)", [(4,), (4,)], "the size of 'a' in (a b)"),
    ],
)
def test_a_rule_that_does_not_fit_its_shapes_says_where(text, shapes, said):
    register_rule("user_bad", text, whole=["j"] if "j" in text else [])
    values = [Value(i, s, "float32") for i, s in enumerate(shapes)]
    with pytest.raises(RuleError, match=re.escape(said)):
        rule_for(Site("user_bad", (values[0],), tuple(values[1:] or values)))
    unregister_rule("user_bad")


@pytest.mark.parametrize(
    ("wrong", "f", "line", "more"),
    [
        ("sort", jnp.sort, "i -> i", {}),
        ("exp", jnp.exp, "i -> i", {"linear": [(0,)]}),
        ("reduce_max", jnp.max, "i -> .", {"reduce": {"i": "sum"}}),
    ],
)
def test_the_proof_catches_a_wrong_rule(wrong, f, line, more):
    register_rule(wrong, line, **more)
    try:
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check(trace(f, (np.random.default_rng(0).normal(size=8),), wrong), (2,), seed=0)
    finally:
        unregister_rule(wrong)
