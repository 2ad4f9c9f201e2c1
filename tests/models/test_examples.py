"""The four flavours of one GPT are the same model, and all examples run before anything is parallelised."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "frameworks"
FLAVOURS = ("plain", "linen", "nnx", "equinox")
# Models in other people's style: statistics, dropout and static fields in the state.
STYLES = ("mixer_linen", "unet_equinox")


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def made(flavour):
    return load(f"gpt_{flavour}").make()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour_trains(flavour):
    state, step, batch = made(flavour)
    step = jax.jit(step)
    losses = []
    for _ in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(256), rel=0.02)
    assert losses[-1] < 0.95 * losses[0]


def test_flavours_have_the_same_parameters():
    # State is parameters, two moments of each, and counters; Equinox stores its matrices transposed.
    def sizes(flavour):
        leaves = jax.tree.leaves(made(flavour)[0])
        return sorted(np.size(x) for x in leaves if np.size(x) > 1)

    expected = sizes("plain")
    assert all(sizes(flavour) == expected for flavour in FLAVOURS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavour_is_a_short_script_and_float64_where_asked(flavour):
    assert len((FOLDER / f"gpt_{flavour}.py").read_text().splitlines()) < 80
    state, step, batch = made(flavour)
    after = jax.eval_shape(step, state, batch)
    floats = {x.dtype.name for x in jax.tree.leaves(after) if np.issubdtype(x.dtype, np.floating)}
    assert floats == {"float64"}


@pytest.mark.parametrize("name", STYLES)
def test_other_styles_train_and_are_short_scripts(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 90
    state, step, batch = load(name).make()
    step = jax.jit(step)
    losses = []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_a_train_state_carries_statistics_and_the_key_of_its_dropout():
    state, step, batch = load("mixer_linen").make()
    after, metrics = jax.jit(step)(state, batch)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.batch_stats, after.batch_stats)
    assert min(jax.tree.leaves(moved)) > 0 and int(after.step) == 1
    other = state.replace(dropout_key=jax.random.key(7))
    assert float(jax.jit(step)(other, batch)[1]["loss"]) != float(metrics["loss"])
