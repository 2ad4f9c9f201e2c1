"""One contract for every model of the registry: it traces, trains, repeats itself and is exact in float64."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import MODELS, Recipe, State, get
from autopar.models.update import optimizer, update

# Large sizes of each family whose step is traced here, abstractly; few layers tell as much as many.
FEW = {"layers": 2}
LARGE = {
    "mlp": ("1b", {}),
    "gpt": ("39b", FEW),
    "gpt-scan": ("39b", {}),
    "bert": ("large", FEW),
    "moe": ("70b", FEW),
    "glam": ("1.2t", FEW),
    "gshard": ("600b", {"layers": 4}),
    "seq2seq": ("big", FEW | {"decoder_layers": 2}),
    "llama": ("3b", FEW),
    "llama-scan": ("405b", {}),
    "palm": ("540b", FEW),
    "palm-scan": ("540b", {}),
    "convnet": ("resnet18", {}),
    "amoebanet": ("72-512", {"layers": 1, "groups": 1}),
    "efficientnet": ("b0", {"depth": 0.1}),
    "efficientdet": ("d0", {"depth": 0.1, "layers": 2}),
    "wide-resnet": ("13b", {"blocks": (1, 1, 1, 1)}),
    "conformer": ("g", FEW),
    "w2v-bert": ("xxl", FEW | {"prediction_layers": 2}),
    "legonn": ("asr", FEW | {"length_layers": 2, "decoder_layers": 2}),
    "gspmd-dense": ("1t", FEW),
    "gspmd-dense-scan": ("1t", {}),
    "transformer-l": ("1663", FEW),
    "transformer-l-translation": ("64-16384-32", FEW | {"decoder_layers": 2}),
    "deepseek": ("v3", {"layers": 4}),
    "vmoe": ("15b", {"layers": 2, "routed_layers": 1}),
    "brainformer": ("8b64e", {"blocks": 1}),
    "parallel-track": ("64b", {"blocks": 1}),
}

TOYS = [f"{name}:{preset}" for name, family in MODELS.items() for preset in family.presets if preset.startswith("toy")]

# The tests compile without optimising, and float64 convolutions then take long to run.
FEW_EXAMPLES = ("convnet", "wide-resnet", "conformer", "w2v-bert", "legonn", "efficientnet", "efficientdet")


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


class Trained(NamedTuple):
    """A toy recipe in float64, its step's text, its first state, losses of 20 steps on one batch, the last state."""

    recipe: Recipe
    text: str
    first: State
    losses: list[float]
    last: State


@functools.cache
def trained(name: str) -> Trained:
    few = {"batch_size": 4} if name.split(":")[0] in FEW_EXAMPLES else {}
    recipe = get(name, dtype="float64", learning_rate=3e-3, **few)
    first = state = recipe.init(jax.random.key(0))
    batch, losses = recipe.batch(0), []
    traced = jax.jit(recipe.step).trace(state, batch)
    step = traced.lower().compile()
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return Trained(recipe, str(traced.jaxpr), first, losses, state)


@pytest.mark.parametrize("name", TOYS)
def test_trains(name):
    _, _, first, losses, last = trained(name)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]
    assert int(last.step) == 20
    assert shapes(first) == shapes(last)


@pytest.mark.parametrize("name", TOYS)
def test_abstract_arguments_are_those_of_the_real_ones(name):
    recipe, first = trained(name).recipe, trained(name).first
    assert shapes(recipe.abstract()) == shapes((first, recipe.batch(0)))


@pytest.mark.parametrize("name", TOYS)
def test_every_parameter_learns(name):
    # A gradient that is zero but for rounding makes two correct runs differ (see the package's docstring).
    first, last = trained(name).first, trained(name).last
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), first.params, last.params)
    still = [(path, by) for path, by in jax.tree_util.tree_leaves_with_path(moved) if by < 1e-4]
    assert not still


@pytest.mark.parametrize("name", TOYS)
def test_float64_is_float64_throughout(name):
    assert not re.findall(r"(?:f32|bf16|f16)\[\d.*", trained(name).text)


@pytest.mark.parametrize("name", TOYS)
def test_mixed_precision_keeps_parameters_in_float32(name):
    recipe = get(name, dtype="bfloat16")
    state, batch = recipe.abstract()
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(recipe.step)(state, batch))
    assert re.search(r"bf16\[[\d,]+\] = (dot_general|conv_general_dilated)", text)


@pytest.mark.parametrize("name", TOYS)
def test_adafactor_keeps_factored_moments(name):
    params = trained(name).first.params
    tx = optimizer("adafactor", 1e-3)
    state = jax.eval_shape(tx.init, params)
    assert sum(x.size for x in jax.tree.leaves(state)) < sum(x.size for x in jax.tree.leaves(params)) / 2
    assert shapes(jax.eval_shape(functools.partial(update, tx), params, state, params)) == shapes((params, state))


def test_the_optimizer_may_be_adafactor():
    recipe = get("gpt", optimizer="adafactor")
    state, batch = recipe.abstract()
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < recipe.parameter_count() / 2
    assert shapes(jax.eval_shape(recipe.step, state, batch)[0]) == shapes(state)


@pytest.mark.parametrize("name", TOYS)
def test_batches_repeat_and_differ(name):
    recipe = trained(name).recipe
    one, again, other = (jax.tree.leaves(recipe.batch(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "sizes"), LARGE.items())
def test_large_presets_trace(name, sizes):
    preset, fewer = sizes
    recipe = get(name, preset=preset, **fewer)
    state, batch = recipe.abstract()
    after, metrics = jax.eval_shape(recipe.step, state, batch)
    assert shapes(after) == shapes(state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_every_family_has_a_large_preset_in_this_file():
    assert set(LARGE) == set(MODELS)


def test_scanned_and_unrolled_gpt_agree():
    # The two draw their initial weights and dropout alike, so that whole runs can be compared.
    np.testing.assert_allclose(trained("gpt:toy").losses, trained("gpt-scan:toy").losses, rtol=1e-12)


def test_dropout_changes_with_the_key_in_the_state():
    recipe, _, first, losses, last = trained("gpt:toy")
    step = jax.jit(recipe.step)
    assert float(step(first, recipe.batch(0))[1]["loss"]) == losses[0]
    assert float(step(first._replace(key=last.key), recipe.batch(0))[1]["loss"]) != losses[0]
    assert get("gpt", dropout=0.0).abstract()[0].key is None


@pytest.mark.parametrize("name", ["llama:toy", "conformer:toy"])
def test_layers_start_different(name):
    params = trained(name).first.params
    layers = params["layers"] if "layers" in params else params["encoder"]["stack"]["layers"]
    one, two = (jax.tree.leaves(layers[i]) for i in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
