"""The FLOPs that a plan records: those of the model, and what runs again."""

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar.ir import product_flops
from autopar.models import get
from autopar.trace import trace
from tests.api import attending
from tests.api.pipelines import planned

SHAPES = (jax.ShapeDtypeStruct((6, 6), "float32"), jax.ShapeDtypeStruct((8, 6), "bfloat16"))


def step(around):
    """Two products and a tanh after each, under something."""

    def run(w, x):
        def loss(w):
            body = around(lambda w, x: jnp.tanh(jnp.tanh(x @ w.astype(x.dtype)) @ w.astype(x.dtype)))
            return jnp.sum(body(w, x).astype("float32") ** 2)

        return w - 0.1 * jax.grad(loss)(w)

    return run


@pytest.mark.parametrize("name", ["gpt", "llama", "bert"])
def test_they_are_three_times_those_of_the_forward_pass(name):
    recipe = get(name)
    graph = trace(recipe.step, recipe.abstract(), donate_argnums=0).step.graph
    assert sum(product_flops(graph).values()) == recipe.flops()


def test_a_scan_counts_as_often_as_it_runs():
    scanned, unrolled = (trace(r.step, r.abstract()).step.graph for r in (get("gpt-scan"), get("gpt")))
    assert product_flops(scanned) == product_flops(unrolled)


def test_what_a_checkpoint_runs_again_is_counted_apart():
    one = 2 * 8 * 6 * 6  # there are two products forward, and three backward: the data has no gradient
    plain, kept = (trace(step(around), SHAPES).step.graph for around in (lambda f: f, jax.checkpoint))
    assert product_flops(plain) == product_flops(kept) == {"bfloat16": 5 * one}
    assert product_flops(plain, again=True) == {}
    assert product_flops(kept, again=True) == {"bfloat16": 2 * one}


def test_plans_record_them_by_dtype():
    found = autopar.plan(step(jax.checkpoint), *SHAPES, cluster="h100:2", options=autopar.Options(microbatches=2))
    assert found.flops == {"bfloat16": 5 * 2 * 8 * 6 * 6} and found.again_flops == 2 * 2 * 8 * 6 * 6


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_stages_share_them(schedule):
    """Four layers of 32 examples: forward, back to the parameters of all, and to what comes into all but the first."""
    one = 2 * 32 * 16 * 16
    found = planned(schedule=schedule)
    assert found.flops == {"float64": (4 + 4 + 3) * one} and found.again_flops == 0
    assert sum(stage.plan.flops["float64"] for stage in found.stages) == found.flops["float64"]


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_what_a_plan_computes_again_is_counted(schedule):
    """With ``attention`` that is the product of queries and keys of each layer; with ``full`` more, never all."""
    nothing, cores, most = (attending.planned(remat, schedule=schedule) for remat in ("none", "attention", "full"))
    assert nothing.again_flops == 0
    assert cores.again_flops == attending.LAYERS * 2 * attending.BATCH * attending.LENGTH**2 * attending.WIDTH
    forward = nothing.flops["float64"] / 3
    assert cores.again_flops < most.again_flops < forward
