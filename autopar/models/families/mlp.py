"""A multi-layer perceptron for regression, in plain JAX: the smallest thing worth parallelising."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Config):
    """Sizes: `layers` hidden layers of `hidden` units between `inputs` and `outputs` features."""

    inputs: int = 32
    hidden: int = 64
    outputs: int = 16
    layers: int = 3


PRESETS = {
    "toy": MLPConfig(),
    "1b": MLPConfig(inputs=4096, hidden=8192, outputs=4096, layers=15, batch_size=4096, dtype="bfloat16"),
}


def make(family: Family, preset: str, c: MLPConfig) -> Recipe:
    """Builds the recipe; parameters are a list of {"w": [in, out], "b": [out]}."""
    widths = [c.inputs, *[c.hidden] * c.layers, c.outputs]
    shapes = list(itertools.pairwise(widths))

    def init(key: jax.Array) -> tuple[Pytree, None]:
        keys = jax.random.split(key, len(shapes))
        return [
            {
                "w": jax.random.normal(k, shape, c.param_dtype) * (2.0 / shape[0]) ** 0.5,
                "b": jnp.zeros((shape[1],), c.param_dtype),
            }
            for k, shape in zip(keys, shapes, strict=True)
        ], None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = batch["x"].astype(c.compute_dtype)
        for i, layer in enumerate(params):
            x = x @ layer["w"].astype(x.dtype) + layer["b"].astype(x.dtype)
            if i < len(params) - 1:
                x = jax.nn.relu(x)
        return jnp.square(x.astype(c.param_dtype) - batch["y"]).mean(), ({}, None)

    def batch(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((c.batch_size, c.inputs))
        y = np.sin(x @ rng.standard_normal((c.inputs, c.outputs)) / c.inputs**0.5)
        return {"x": x.astype(c.param_dtype), "y": y.astype(c.param_dtype)}

    spec = {
        "x": jax.ShapeDtypeStruct((c.batch_size, c.inputs), c.param_dtype),
        "y": jax.ShapeDtypeStruct((c.batch_size, c.outputs), c.param_dtype),
    }
    return make_recipe(family, preset, c, init=init, loss=loss, batch=batch, batch_spec=spec)


FAMILY = Family(
    name="mlp",
    summary="dense layers with ReLU, squared error; plain JAX",
    source="Rumelhart, Hinton & Williams 1986",
    presets=PRESETS,
    make=make,
)
