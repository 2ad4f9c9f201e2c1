"""Llama's variants against each other: scanned and unrolled, one matrix for words and two."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from autopar.models import get

SIZES = {"dtype": "float64", "layers": 3, "hidden": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "vocab": 16}


def started(name, **sizes):
    """A recipe, its first parameters as nested dicts, and the loss of such."""
    recipe = get(name, **SIZES | sizes)
    state = recipe.init(jax.random.key(1))

    def loss(params):
        params = nnx.State(jax.tree.map(nnx.Param, params))
        return recipe.evaluate(state._replace(params=params), recipe.batch(0))["loss"]

    return nnx.to_pure_dict(state.params), loss


def test_a_scan_over_layers_is_one_after_the_other():
    params, unrolled = started("llama")
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *(params["layers"][i] for i in range(3)))
    shapes, scanned = started("llama-scan")
    stacked = params | {"layers": stacked}
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(scanned(stacked), unrolled(params), rtol=1e-12)
    swapped = stacked | {"layers": jax.tree.map(lambda w: w[::-1], stacked["layers"])}
    assert abs(scanned(swapped) - unrolled(params)) > 1e-6


def test_scanned_layers_start_different():
    params, _ = started("llama-scan")
    for kernel in (params["layers"]["up"]["kernel"], params["layers"]["attention"]["query"]["kernel"]):
        assert jnp.abs(kernel[0] - kernel[1]).max() > 0.01


def test_tied_output_layer_is_the_embedding():
    params, tied = started("llama", tied=True)
    assert "head" not in params
    _, untied = started("llama")
    head = {"kernel": params["embed"]["embedding"].T}
    np.testing.assert_allclose(untied(params | {"head": head}), tied(params), rtol=1e-12)
