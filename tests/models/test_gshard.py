"""GShard's translation model: languages, routing by them, and one layer against its equations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import get
from autopar.models.data.sentences import FIRST_WORD, PADDING, in_languages, sentences
from autopar.models.families.gshard import GShardConfig, init_layer, run_layer
from autopar.models.flops import count_flops
from autopar.models.layers.experts import moe_layer
from tests.models.drawn import drawn_state


def test_a_language_has_its_own_word_for_each():
    batch = sentences(0, 64, 8, 8, 32)
    said, language = in_languages(batch, 0, 4, 120)
    for name in ("tokens", "targets"):
        assert np.array_equal(said[name], batch[name])
    assert np.array_equal(said["source"] == PADDING, batch["source"] == PADDING)
    meaning, names = {}, {}
    for words, heard, spoken in zip(batch["source"], said["source"], language, strict=True):
        for word, name in zip(words[words != PADDING], heard[heard != PADDING], strict=True):
            assert FIRST_WORD <= name < 120
            assert meaning.setdefault((spoken, name), word) == word
            assert names.setdefault((spoken, word), name) == name
    assert set(language) == {0, 1, 2, 3}


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)


def attend(w, x, memory, visible):
    out = np.zeros_like(x)
    for b in range(len(x)):
        for h in range(w["wq"].shape[1]):
            q = x[b] @ w["wq"][:, h] + w["bq"][h]
            k, v = memory[b] @ w["wk"][:, h], memory[b] @ w["wv"][:, h] + w["bv"][h]
            for s in range(len(q)):
                seen = [t for t in range(len(k)) if visible(b, s, t)]
                scores = np.array([q[s] @ k[t] for t in seen]) / np.sqrt(q.shape[-1])
                weights = np.exp(scores - scores.max())
                out[b, s] += (weights / weights.sum()) @ v[seen] @ w["wo"][h]
    return out + w["bo"]


@pytest.mark.parametrize("routed", [False, True])
def test_a_decoder_layer(routed):
    c = GShardConfig(hidden=6, heads=2, head=4, ffn=5, source=7, target=4, experts=4, group=4, dtype="float64",
                     batch_size=8)  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_layer(jax.random.key(0), c, routed=routed, crosses=True))
    p = jax.tree.map(lambda w: rng.normal(size=w.shape), shapes)
    for norm in ("ln1", "ln_across", "ln2"):
        p[norm] = {"scale": np.ones(6), "bias": np.zeros(6)}
    x, memory = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 7, 6))
    words = np.array([3, 7])
    heard = (np.arange(7) < words[:, None])[:, None, None, :]
    causal = np.tril(np.ones((4, 4), bool))
    found, aux = run_layer(p, x, causal, (memory, heard), None, None, c)

    y = layer_norm(x)
    expected = x + attend(p["attn"], y, y, lambda b, s, t: t <= s)
    expected = expected + attend(p["across"], layer_norm(expected), memory, lambda b, s, t: t < words[b])
    y = layer_norm(expected)
    if routed:
        mixed, _ = moe_layer(p["moe"], jnp.asarray(y), c.spec, activation=jax.nn.relu)  # has an oracle of its own
        assert aux.losses.keys() == {"aux_loss"}
    else:
        mixed = np.maximum(y @ p["mlp"]["w1"] + p["mlp"]["b1"], 0.0) @ p["mlp"]["w2"] + p["mlp"]["b2"]
        assert aux is None
    np.testing.assert_allclose(found, expected + mixed, rtol=1e-11, atol=1e-12)


def test_routes_by_language():
    recipe = get("gshard", router="task", dtype="float64", dropout=0.0)
    state, batch = drawn_state(recipe), recipe.batch(0)
    assert jax.tree.map(np.shape, batch) == jax.tree.map(lambda x: x.shape, recipe.batch_spec)
    text = str(jax.make_jaxpr(recipe.step)(state, batch))
    assert not re.findall(r"(?:f32|bf16|f16)\[\d.*", text)

    def loss(params, language):
        return recipe.evaluate(state._replace(params=params), batch | {"language": language})["loss"]

    loss_and_grads = jax.jit(jax.value_and_grad(loss))
    value, grads = loss_and_grads(state.params, batch["language"])
    assert all(float(jnp.abs(g).max()) > 1e-8 for g in jax.tree.leaves(grads))
    learned = np.abs(np.asarray(grads["languages"])).max(axis=-1) > 0
    assert set(np.flatnonzero(learned)) == set(batch["language"])
    others = (batch["language"] + 1) % 8
    assert float(loss_and_grads(state.params, others)[0]) != float(value)


@pytest.mark.parametrize("name", ["gshard", "glam"])
def test_layers_are_computed_again(name):
    first, again = (get(name, dtype="float64", remat=remat) for remat in (False, True))
    flops, again = (count_flops(recipe.step, *recipe.abstract()) for recipe in (first, again))
    # The backward pass runs the layers forward once more, but for what nothing reads.
    assert 1.1 * flops < again <= 4 / 3 * flops


def test_a_token_uses_two_of_the_experts():
    recipe = get("gshard:600b")
    c = recipe.config
    idle = recipe.parameter_count() - recipe.active_parameter_count()
    assert idle == 18 * (c.experts - 2) * 2 * c.hidden * c.ffn
