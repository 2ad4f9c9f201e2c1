"""PaLM against its equations, head by head in NumPy."""

import jax
import numpy as np
import pytest

from autopar.models import get
from tests.models.drawn import drawn_state

SMALL = {"dtype": "float64", "layers": 2, "hidden": 12, "heads": 3, "head": 6, "sequence": 5, "vocab": 16}


def norm(scale, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def turned(x):
    """Pairs of numbers, as one complex number each, turned by the position."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
    pairs = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], -1)


def layer(p, x):
    y = norm(p["norm"], x)
    key, value = turned(y @ p["wk"]), y @ p["wv"]
    out = x.copy()
    for h in range(p["wq"].shape[1]):
        scores = turned(y @ p["wq"][:, h]) @ key.T / np.sqrt(key.shape[-1])
        scores[np.triu_indices(len(x), 1)] = -np.inf
        out += softmax(scores) @ value @ p["wo"][h]
    gate = y @ p["mlp"]["gate"]
    return out + (gate / (1 + np.exp(-gate)) * (y @ p["mlp"]["up"])) @ p["mlp"]["down"]


@pytest.mark.parametrize("name", ["palm", "palm-scan"])
def test_the_model_is_its_equations(name):
    recipe = get(name, **SMALL, batch_size=2, z_loss=0.1)
    state, batch = drawn_state(recipe), recipe.batch(0)
    p = jax.tree.map(np.asarray, state.params)
    losses = []
    for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
        x = p["embed"][tokens]
        for i in range(2):
            stacked = name == "palm-scan"
            x = layer(jax.tree.map(lambda w, i=i: w[i], p["layers"]) if stacked else p["layers"][i], x)
        logits = norm(p["norm"], x) @ p["embed"].T / np.sqrt(12)
        z = np.log(np.exp(logits).sum(-1))
        losses += list(z - logits[np.arange(5), targets] + 0.1 * z**2)
    found = recipe.evaluate(state, batch)["loss"]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)
