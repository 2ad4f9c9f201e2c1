"""Brainformer beside loops: a block in any order, experts that choose tokens, and what the sizes were deduced from."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.brainformer import BRAINFORMER_1, BrainformerConfig, init_sublayer, sublayer
from tests.models import naive


def naive_experts(p, x, slots):
    """Each expert takes the `slots` tokens of the group that like it best: [s, d] -> [s, d]."""
    gates = np.stack([naive.softmax(h @ p["router"]) for h in x])
    out = np.zeros_like(x)
    for e in range(gates.shape[1]):
        for t in np.argsort(-gates[:, e])[:slots]:
            out[t] += gates[t, e] * naive.expert(p, e, x[t], naive.gelu)
    return out


def naive_block(sublayers, x, slots):
    """One sequence, which is one group."""
    for p in sublayers:
        y = np.stack([naive.layer_norm(p["norm"], h) for h in x])
        if "attention" in p:
            x = x + naive.attention(p["attention"], y, causal=True)
        elif "moe" in p:
            x = x + naive_experts(p["moe"], y, slots)
        else:
            x = x + np.stack([naive.gated_mlp(p["ffn"], h, naive.gelu) for h in y])
    return x


@pytest.mark.parametrize(
    ("block", "capacity_factor", "slots"), [(BRAINFORMER_1, 1.0, 2), (("ffn", "moe", "attention"), 2.5, 5)]
)
def test_block_is_the_equations(block, capacity_factor, slots):
    c = BrainformerConfig(
        block=block, hidden=8, heads=3, head=4, ffn=5, experts=3, expert_ffn=6, sequence=6, group=6, batch_size=2,
        capacity_factor=capacity_factor, dtype="float64",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: [init_sublayer(jax.random.key(0), kind, c) for kind in block])
    params, x = naive.shaken(shapes, rng), rng.normal(size=(2, 6, 8))

    @jax.jit
    def found(params, x):
        for p in params:
            x = sublayer(p, x, c)
        return x

    expected = np.stack([naive_block(params, row, slots) for row in x])
    np.testing.assert_allclose(found(params, x), expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(("preset", "total", "activated"), [("1b64e", 30e9, 1.38e9), ("8b64e", 158e9, 7.4e9)])
def test_sizes_give_all_four_published_numbers(preset, total, activated):
    recipe = get("brainformer", preset=preset)
    c = recipe.config
    assert recipe.parameter_count() == pytest.approx(total, rel=0.02)
    embeddings = (c.vocab + c.sequence) * c.hidden
    assert recipe.active_parameter_count() - embeddings == pytest.approx(activated, rel=0.01)
