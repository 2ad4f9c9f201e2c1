"""GLaM against a statement of its equations, and what its tables say a token uses."""

import math

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.glam import GLaMConfig, decoder_layer, init_layer
from autopar.models.layers.relative_bias import first_distances, relative_bias


def bucket(distance, buckets=32, farthest=128):
    """Of distances to earlier positions, as in T5."""
    near = buckets // 2
    if distance < near:
        return distance
    far = near + int(math.log(distance / near) / math.log(farthest / near) * (buckets - near))
    return min(far, buckets - 1)


def test_distances_fall_into_the_buckets_of_t5():
    first = np.asarray(first_distances(np.dtype("float64")))
    for distance in range(300):
        assert bucket(distance) == max(i for i, least in enumerate(first) if least <= distance)


def test_relative_bias_looks_up_the_distance():
    sequence, heads = 150, 2
    table = np.random.default_rng(0).normal(size=(32, heads))
    expected = np.zeros((heads, sequence, sequence))
    for s in range(sequence):
        for t in range(s + 1):
            expected[:, s, t] = table[bucket(s - t)]
    np.testing.assert_allclose(relative_bias(table, sequence), expected, atol=1e-15)


def rms_norm(x):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_a_dense_layer():
    c = GLaMConfig(hidden=6, heads=2, head=4, ffn=5, dtype="float64")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_layer(jax.random.key(0), c, routed=False))
    p = jax.tree.map(lambda w: rng.normal(size=w.shape), shapes)
    p["norm1"]["scale"], p["norm2"]["scale"] = np.ones(6), np.ones(6)
    x = rng.normal(size=(2, 7, 6))
    found, aux = decoder_layer(p, x, c.spec)
    assert aux is None

    expected = x.copy()
    w, y = p["attn"], rms_norm(x)
    for b in range(2):
        for h in range(2):
            q, k, v = y[b] @ w["wq"][:, h] + w["bq"][h], y[b] @ w["wk"][:, h], y[b] @ w["wv"][:, h] + w["bv"][h]
            for s in range(7):
                scores = np.array([q[s] @ k[t] / 2 + p["positions"][bucket(s - t), h] for t in range(s + 1)])
                weights = np.exp(scores - scores.max())
                expected[b, s] += (weights / weights.sum()) @ v[: s + 1] @ w["wo"][h]
    expected += w["bo"]
    y, m = rms_norm(expected), p["mlp"]
    expected += (gelu(y @ m["gate"]) * (y @ m["up"])) @ m["down"]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("preset", "active"), [("1.9b", 152.3e6), ("27b", 1.879e9), ("1.2t", 96.6e9)])
def test_parameters_that_a_token_uses(preset, active):
    # 145 million are published of the first.
    assert get("glam", preset=preset).active_parameter_count() == pytest.approx(active, rel=0.002)
