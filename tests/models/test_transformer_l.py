"""GPipe's Transformers against their equations, written out head by head in NumPy."""

import jax
import numpy as np
import pytest

from autopar.models import get
from tests.models.drawn import drawn_state

SMALL = {"dtype": "float64", "layers": 2, "hidden": 16, "heads": 2, "ffn_factor": 3, "vocab": 16, "dropout": 0.0}


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(p, x, memory, visible):
    """One sentence: [s, d] and [t, d] -> [s, d]; `visible` is [s, t]."""
    out = np.zeros_like(x) + p["bo"]
    for h in range(p["wq"].shape[1]):
        q, k = x @ p["wq"][:, h] + p["bq"][h], memory @ p["wk"][:, h]
        scores = np.where(visible, q @ k.T / np.sqrt(k.shape[-1]), -np.inf)
        out += softmax(scores) @ (memory @ p["wv"][:, h] + p["bv"][h]) @ p["wo"][h]
    return out


def feed_forward(p, x, activation):
    return activation(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def relu(x):
    return np.maximum(x, 0)


def embed(table, ids):
    x = table[ids] * np.sqrt(table.shape[1])
    half = table.shape[1] // 2
    for position in range(len(ids)):
        for i in range(half):
            angle = position / 10_000 ** (2 * i / table.shape[1])
            x[position, i] += np.sin(angle)
            x[position, half + i] += np.cos(angle)
    return x


def started(name, **sizes):
    recipe = get(name, **SMALL | sizes)
    state = drawn_state(recipe)
    return recipe, state, jax.tree.map(np.asarray, state.params)


def test_the_language_model_is_its_equations():
    recipe, state, p = started("transformer-l", sequence=5, batch_size=2, head=6)
    batch, nll = recipe.batch(0), []
    causal = np.tril(np.ones((5, 5), bool))
    for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
        x = embed(p["wte"], tokens)
        for layer in p["layers"]:
            y = norm(layer["ln1"], x)
            x = x + attend(layer["attn"], y, y, causal)
            x = x + feed_forward(layer["mlp"], norm(layer["ln2"], x), gelu)
        predicted = softmax(norm(p["ln_f"], x) @ p["head"].T)
        nll += [-np.log(predicted[i, target]) for i, target in enumerate(targets)]
    assert float(recipe.evaluate(state, batch)["loss"]) == pytest.approx(np.mean(nll), rel=1e-12)


def test_the_translation_model_is_its_equations():
    recipe, state, p = started(
        "transformer-l-translation", decoder_layers=1, source=6, target=5, batch_size=3, head=6, smoothing=0.25
    )
    batch, losses = recipe.batch(0), []
    encoder, decoder = p["encoder"], p["decoder"]
    for source, tokens, targets in zip(batch["source"], batch["tokens"], batch["targets"], strict=True):
        source, n = source[source != 0], int((targets != 0).sum())
        memory = embed(encoder["embed"], source)
        for layer in encoder["layers"]:
            y = norm(layer["ln1"], memory)
            memory = memory + attend(layer["attn"], y, y, True)
            memory = memory + feed_forward(layer["mlp"], norm(layer["ln2"], memory), relu)
        memory = norm(encoder["ln_f"], memory)
        x = embed(decoder["embed"], tokens[:n])
        for layer in decoder["layers"]:
            y = norm(layer["ln1"], x)
            x = x + attend(layer["attn"], y, y, np.tril(np.ones((n, n), bool)))
            x = x + attend(layer["across"], norm(layer["ln_across"], x), memory, True)
            x = x + feed_forward(layer["mlp"], norm(layer["ln2"], x), relu)
        predicted = np.log(softmax(norm(decoder["ln_f"], x) @ decoder["output"].T))
        losses += [-0.75 * predicted[i, targets[i]] - 0.25 * predicted[i].mean() for i in range(n)]
    assert float(recipe.evaluate(state, batch)["loss"]) == pytest.approx(np.mean(losses), rel=1e-12)
