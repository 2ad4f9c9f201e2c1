"""First states whose numbers NumPy draws: a model's own take XLA seconds to compile, and few tests are about them."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn_state(recipe):
    """A state of `recipe` with every parameter moved from 0, or from 1 what scales, and the rest as it begins."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        ones = "scale" in jax.tree_util.keystr(path[-1:])
        return jnp.asarray(ones + 0.1 * rng.standard_normal(x.shape), x.dtype)

    def begin(path, x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(x.shape, "var" in jax.tree_util.keystr(path[-1:]), x.dtype)

    state, _ = recipe.abstract()
    rest = jax.tree_util.tree_map_with_path(begin, state._replace(params=None))
    return rest._replace(params=jax.tree_util.tree_map_with_path(draw, state.params))
