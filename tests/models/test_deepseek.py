"""Latent attention and DeepSeek's layer beside their equations, one position, one head and one expert at a time."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.deepseek import DeepSeekConfig, decoder_layer, init_layer
from autopar.models.layers.latent_attention import LatentSizes, latent_attention, latent_attention_init
from tests.models import naive
from tests.models.drawn import drawn_state

THETA = 100.0
HIDDEN = 12


def shapes(init, *sizes):
    return jax.eval_shape(lambda: init(jax.random.key(0), *sizes))


def naive_attention(p, x, c, theta):
    """Equations 1 to 11 of DeepSeek-V3 for one sequence: [s, d] -> [s, d]."""
    out = np.zeros_like(x)
    latent = [naive.rms_norm(p["kv_norm"], h @ p["kv_down"]) for h in x]
    for t, h in enumerate(x):
        c_q = h if c.q_rank is None else naive.rms_norm(p["q_norm"], h @ p["q_down"])
        for i in range(c.heads):
            q = np.concatenate([c_q @ p["q_nope"][:, i], naive.rope(c_q @ p["q_rope"][:, i], t, theta)])
            keys = [
                np.concatenate([latent[j] @ p["k_nope"][:, i], naive.rope(x[j] @ p["k_rope"], j, theta)])
                for j in range(t + 1)
            ]
            values = [latent[j] @ p["value"][:, i] for j in range(t + 1)]
            out[t] += naive.mix(q, keys, values, (c.nope + c.rope) ** -0.5) @ p["out"][i]
    return out


@pytest.mark.parametrize(
    "sizes",
    [
        LatentSizes(heads=3, q_rank=5, kv_rank=7, nope=4, rope=2, value=6),
        LatentSizes(heads=2, q_rank=None, kv_rank=3, nope=1, rope=4, value=2),
        LatentSizes(heads=1, q_rank=1, kv_rank=1, nope=1, rope=2, value=1),
    ],
)
def test_is_the_equations(sizes):
    rng = np.random.default_rng(0)
    params = naive.shaken(shapes(latent_attention_init, HIDDEN, sizes, np.float64, 1.0), rng)
    x = rng.normal(size=(2, 6, HIDDEN))
    expected = np.stack([naive_attention(params, row, sizes, THETA) for row in x])
    found = jax.jit(latent_attention, static_argnums=2)(params, x, THETA)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_what_a_cache_would_hold_is_small():
    # Per token the compressed vector and one rotary key, whatever the number of heads: 576 numbers in DeepSeek-V3.
    sizes = LatentSizes(heads=128, q_rank=1536, kv_rank=512, nope=128, rope=64, value=128)
    params = shapes(latent_attention_init, 7168, sizes, np.float32, 0.02)
    assert params["kv_down"].shape[1] + params["k_rope"].shape[1] == 576
    assert sum(w.size for w in jax.tree.leaves(params)) == pytest.approx(187.1e6, rel=1e-3)


def naive_layer(p, x, bias, c):
    """One sequence: [s, d] -> [s, d]."""
    normed = np.stack([naive.rms_norm(p["norm1"], h) for h in x])
    x = x + naive_attention(p["attn"], normed, c.latent, c.rope_theta)
    return np.stack([h + naive_feed_forward(p, naive.rms_norm(p["norm2"], h), bias, c) for h in x])


def naive_feed_forward(p, h, bias, c):
    """Equations 12 to 16 of DeepSeek-V3, for one token."""
    if "mlp" in p:
        return naive.gated_mlp(p["mlp"], h)
    moe = p["moe"]
    affinity = naive.sigmoid(h @ moe["router"])
    chosen = np.argsort(-(affinity + bias))[: c.top_k]
    weights = c.routed_scale * affinity[chosen] / affinity[chosen].sum()
    routed = sum(w * naive.expert(moe, e, h, naive.silu) for w, e in zip(weights, chosen, strict=True))
    shared = {
        name: np.split(w, c.shared_experts, axis=name == "w1" or name == "gate") for name, w in moe["shared"].items()
    }
    return routed + sum(naive.expert(shared, i, h, naive.silu) for i in range(c.shared_experts))


@pytest.mark.parametrize("routed", [False, True])
def test_layer_is_the_equations(routed):
    # Slots for all: what happens without is the business of the routers' own tests.
    c = DeepSeekConfig(
        hidden=12, heads=2, q_rank=6, kv_rank=5, nope=4, rope=4, value=3, dense_ffn=7, experts=6, top_k=3, expert_ffn=5,
        shared_experts=2, routed_scale=2.5, batch_size=2, sequence=6, group=6, capacity_factor=2.0, dtype="float64",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = naive.shaken(shapes(init_layer, c, routed), rng)
    x, bias = rng.normal(size=(2, 6, 12)), 0.3 * rng.normal(size=6)
    found, aux = jax.jit(lambda p, x: decoder_layer(p, x, bias if routed else None, c))(params, x)
    expected = np.stack([naive_layer(params, row, bias, c) for row in x])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())
    assert aux is None if not routed else float(aux.load.sum()) == 2 * 6 * 3


def test_the_bias_in_the_state_follows_the_load():
    recipe = get("deepseek", dtype="float64", bias_speed=0.01, layers=1, dense_layers=0)
    state = drawn_state(recipe)
    (bias,) = jax.jit(lambda state, batch: recipe.step(state, batch)[0].stats)(state, recipe.batch(0))
    moved = np.asarray(bias - state.stats[0])
    assert set(np.round(moved, 12)) <= {-0.01, 0.0, 0.01} and moved.any()
