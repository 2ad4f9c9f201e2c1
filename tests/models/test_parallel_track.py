"""Tracks beside loops over tracks, layers, tokens and heads; nothing passes between them inside a block."""

import jax
import numpy as np
import pytest

from autopar.models.families.parallel_track import PRESETS, ParallelTrackConfig, init_layer, track_block
from tests.models import naive

# Slots for all: what happens without is the business of the routers' own tests.
C = ParallelTrackConfig(
    tracks=3, depth=3, hidden=6, heads=4, kv_heads=2, head=4, ffn=5, experts=3, expert_ffn=4, sequence=7, group=7,
    batch_size=2, window=3, global_every=3, rope_theta=100.0, capacity_factor=1.5, dtype="float64",
)  # fmt: skip
EVERYTHING = (False, False, True)


def naive_attention(p, x, everything):
    """One track and one sequence: [s, d] -> [s, d]."""
    out = np.zeros_like(x)
    for n in range(C.kv_heads):
        keys = [naive.rms_norm(p["k_norm"], h @ p["wk"][:, n]) for h in x]
        values = [h @ p["wv"][:, n] for h in x]
        for g in range(C.heads // C.kv_heads):
            for t, h in enumerate(x):
                query = naive.rms_norm(p["q_norm"], h @ p["wq"][:, n, g])
                seen = range(t + 1) if everything else range(max(0, t + 1 - C.window), t + 1)
                if everything:
                    mixed = naive.mix(query, [keys[j] for j in seen], [values[j] for j in seen], C.head**-0.5)
                else:
                    turned = [naive.rope(keys[j], j, C.rope_theta) for j in seen]
                    query = naive.rope(query, t, C.rope_theta)
                    mixed = naive.mix(query, turned, [values[j] for j in seen], C.head**-0.5)
                out[t] += mixed @ p["wo"][n, g]
    return out


def naive_feed_forward(p, h):
    """One token of one track."""
    if "mlp" in p:
        return naive.gated_mlp(p["mlp"], h)
    gates = naive.softmax(h @ p["moe"]["router"])
    best = np.argsort(-gates)[:2]
    return sum(gates[e] / gates[best].sum() * naive.expert(p["moe"], e, h, naive.silu) for e in best)


def naive_block(layers, x):
    """One sequence through every track, each on its own."""
    ends = []
    for track in range(C.tracks):
        h = x
        for layer, everything in zip(layers, EVERYTHING, strict=True):
            p = jax.tree.map(lambda w, track=track: w[track], layer)
            h = h + naive_attention(p["attn"], np.stack([naive.rms_norm(p["norm1"], a) for a in h]), everything)
            h = h + np.stack([naive_feed_forward(p, naive.rms_norm(p["norm2"], a)) for a in h])
        ends.append(h)
    return np.mean(ends, axis=0)


@pytest.fixture(scope="module")
def layers():
    def init(key):
        keys = jax.random.split(key, C.tracks)
        return [jax.vmap(lambda key, i=i: init_layer(key, C, routed=i == 1))(keys) for i in range(C.depth)]

    return naive.shaken(jax.eval_shape(init, jax.random.key(0)), np.random.default_rng(0))


def test_block_is_the_equations(layers):
    x = np.random.default_rng(1).normal(size=(2, 7, 6))
    found, (said,) = track_block(layers, x, C, EVERYTHING)
    expected = np.stack([naive_block(layers, row) for row in x])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_array_equal(said.load.sum(axis=1), [2 * 7 * 2] * C.tracks)


def test_tracks_meet_at_the_ends_of_a_block_only(layers):
    # What one track computes has no part in the others: silencing it removes its share of the mean and no more.
    x = np.random.default_rng(1).normal(size=(2, 7, 6))
    whole, _ = track_block(layers, x, C, EVERYTHING)
    alone = [track_block(jax.tree.map(lambda w, t=t: w[t : t + 1], layers), x, C, EVERYTHING)[0] for t in range(3)]
    np.testing.assert_allclose(whole, np.mean(alone, axis=0), rtol=1e-11)
    assert np.abs(alone[0] - alone[1]).min() > 0


def test_global_layers_and_experts():
    c = PRESETS["64b"]
    assert [i for i in range(8) if c.is_global(i)] == [3, 7]
    shapes = jax.eval_shape(lambda: init_layer(jax.random.key(0), c, routed=True))
    assert shapes["moe"]["w1"].shape == (16, 2048, 2816)
