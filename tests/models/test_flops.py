"""Counted FLOPs are those that XLA counts, and the closed form of a Transformer."""

import jax
import jax.numpy as jnp
import pytest

from autopar.models import get
from autopar.models.flops import count_flops


def test_xla_agrees_where_there_is_nothing_but_products():
    def products(a, b, image, kernel):
        conv = jax.lax.conv_general_dilated(
            image, kernel, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return jnp.einsum("bij,bjk->bki", a, b), conv

    shapes = ((3, 4, 5), (3, 5, 6), (2, 16, 16, 4), (3, 3, 2, 8))
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    expected = jax.jit(products).lower(*args).cost_analysis()["flops"]
    # XLA leaves out what multiplies the zeros of "SAME" padding: here one of 16 x 3 rows and two of 16 x 3 columns.
    assert count_flops(products, *args) == 720 + 2 * (2 * 8 * 16 * 8) * 9 * 2
    assert 0.9 < expected / count_flops(products, *args) <= 1.0


def test_loops_and_branches():
    x = jax.ShapeDtypeStruct((8, 8), "float32")
    once = 2 * 8**3
    assert count_flops(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=5)[0], x) == 5 * once
    assert count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), x) == 2 * once
    assert count_flops(jax.checkpoint(jax.jit(lambda x: x @ x)), x) == once


def test_a_transformer_is_six_flops_per_parameter_and_token_and_its_attention():
    recipe = get("gpt:350m")
    c = recipe.config
    matrices = 12 * c.layers * c.hidden**2 + c.vocab * c.hidden
    attention = 12 * c.layers * c.sequence * c.hidden
    assert recipe.flops() / recipe.units == pytest.approx(6 * matrices + attention, rel=1e-3)
    assert recipe.active_parameter_count() == recipe.parameter_count()


def test_a_token_uses_two_of_the_experts():
    recipe = get("moe:27b")
    c = recipe.config
    expert = 2 * c.ffn_factor * c.hidden**2
    idle = recipe.parameter_count() - recipe.active_parameter_count()
    assert idle == c.layers // 2 * (c.experts - 2) * expert
