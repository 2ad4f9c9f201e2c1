"""The mixture-of-experts decoder with each of its routers."""

import functools
import re

import jax
import numpy as np
import pytest

from autopar.models import get
from tests.models.drawn import drawn_state

SMALL = {"hidden": 32, "heads": 4, "experts": 4, "sequence": 16, "group": 16, "vocab": 64, "batch_size": 8}
EXTRA = {"switch": {"aux_loss"}, "expert-choice": set(), "st-moe": {"aux_loss", "z_loss"}, "sigmoid": set()}


@pytest.mark.parametrize("router", EXTRA)
def test_learns_with_each_router(router):
    recipe = get("moe", router=router, dtype="float64", **SMALL)
    state, batch = drawn_state(recipe), recipe.batch(0)
    text = str(jax.make_jaxpr(recipe.step)(state, batch))
    assert not re.findall(r"(?:f32|bf16|f16)\[\d.*", text)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        metrics = recipe.evaluate(state._replace(params=params), batch)
        return metrics["loss"], metrics

    # Plain gradient descent compiles faster than a whole step.
    params, loss, losses = state.params, jax.jit(loss), []
    for _ in range(30):
        (value, metrics), grads = loss(params)
        params = jax.tree.map(lambda p, g: np.asarray(p) - 0.2 * np.asarray(g), params, grads)
        losses.append(float(value))
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert min(jax.tree.leaves(moved)) > 1e-6
    added = 0.01 * metrics.get("aux_loss", 0.0) + 0.001 * metrics.get("z_loss", 0.0)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["cross_entropy"] + added), rel=1e-12)
    assert {"aux_loss", "z_loss"} & metrics.keys() == EXTRA[router]


def test_a_bias_per_layer_balances_the_load_and_is_kept_in_evaluation():
    recipe = get("moe", router="sigmoid", dtype="float64", bias_speed=0.25, **SMALL)
    state, batch = drawn_state(recipe), recipe.batch(0)
    (bias,) = state.stats
    assert bias.shape == (4,) and not bias.any()
    after, metrics = jax.jit(recipe.step)(state, batch)
    (bias,) = after.stats
    assert set(np.unique(bias)) <= {-0.25, 0.0, 0.25} and bias.any()
    # Weights of the first state with the biases of the second: other experts, another loss.
    evaluate = jax.jit(recipe.evaluate)
    assert float(evaluate(state, batch)["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-12)
    assert float(evaluate(state._replace(stats=after.stats), batch)["loss"]) != float(metrics["loss"])


def test_shared_experts_are_never_idle():
    plain, shared = get("moe"), get("moe", shared_experts=2)
    expert = 2 * plain.config.hidden * plain.config.spec.ffn
    assert shared.parameter_count() - plain.parameter_count() == 2 * expert
    assert shared.active_parameter_count() - plain.active_parameter_count() == 2 * expert


def test_other_routers_keep_the_parameters():
    top2, switch = get("moe:70b"), get("moe:70b", router="switch")
    assert top2.parameter_count() == switch.parameter_count()
    assert top2.active_parameter_count() - switch.active_parameter_count() == 16 * 2 * 8 * 2048**2


def test_text_has_no_tasks():
    with pytest.raises(ValueError, match="see 'gshard'"):
        get("moe", router="task")
