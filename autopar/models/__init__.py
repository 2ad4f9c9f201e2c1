"""The model zoo: training steps as JAX users write them, for one device, knowing nothing of autopar.

    recipe = get("gpt", preset="toy")
    state = recipe.init(jax.random.key(0))
    state, metrics = jax.jit(recipe.step)(state, recipe.batch(0))
    state_spec, batch_spec = get("gpt", preset="39b").abstract()    # shapes only, no memory

To add a family:

1. Write one file in `families/`. A frozen dataclass deriving from `Config` holds its sizes; `PRESETS` names some,
   "toy" among them: a step in under 50 ms on one core, every dim that one may want to split divisible by 8.
2. Write `make(family, preset, config) -> Recipe` by giving `make_recipe` an init, key -> (params, stats), and a
   loss, (params, batch, dropout key, stats) -> (loss, (metrics, stats)), in whatever framework is natural.
   The optimizer, clipping and the step come from `make_recipe`.
3. End the file with a `Family(...)` and add it to `_FAMILIES` in `registry.py`. The contract tests in
   `tests/models` then run on it; add its parameter counts to their table.

Rules: no import of autopar outside this package; deterministic; dtypes from the config (`compute_dtype`,
`param_dtype`) and never a literal, so that "float64" is float64 throughout; no parameter whose gradient is zero
by construction (a bias on attention keys, or before a norm), because an optimizer turns rounding noise there
into updates.
"""

from autopar.models.recipe import Config, Family, Recipe, State
from autopar.models.registry import MODELS, get

__all__ = ["MODELS", "Config", "Family", "Recipe", "State", "get"]
