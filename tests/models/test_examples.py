"""The four flavours of one GPT are the same model, and run before anything is parallelised."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
FLAVOURS = ("plain", "linen", "nnx", "equinox")


@functools.cache
def made(flavour):
    spec = importlib.util.spec_from_file_location(f"gpt_{flavour}", FOLDER / f"gpt_{flavour}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make()


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
