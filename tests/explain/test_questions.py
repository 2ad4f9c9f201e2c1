"""Planted questions about known models: what an explanation says is what planning with that choice forced gives."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar.api.sharing import Sharing
from autopar.mesh import Cluster
from autopar.models import get
from autopar.planner import ShortageError
from autopar.planner.search import AnyPrice
from autopar.report.links import bottleneck, link_text

EXACT = {"rel": 1e-9, "abs": 0}
TIGHT = {"mip_gap": 1e-9}


def planned(model, cluster="cpu:8", **options):
    recipe = get(model)
    chosen = autopar.Options(**(TIGHT | options))
    return autopar.plan(recipe.step, *recipe.abstract(), cluster=cluster, options=chosen, donate_argnums=0)


def again(plan, model, **changes):
    """The same model planned anew, by a call of its own, with other options."""
    options = dataclasses.replace(plan.options, **changes)
    recipe, cluster = get(model), Cluster.from_dict(plan.cluster)
    return autopar.plan(recipe.step, *recipe.abstract(), cluster=cluster, options=options, donate_argnums=0)


def same(figures, plan):
    assert figures.step_s == pytest.approx(plan.step_s, **EXACT)
    assert figures.communication_s == pytest.approx(plan.communication_s, **EXACT)
    assert figures.compute_s == pytest.approx(plan.compute_s, **EXACT)
    assert (figures.collective_bytes, figures.peak_bytes) == (plan.collective_bytes, plan.peak_bytes)


def check_alternatives(found, plan, model, name):
    """Every alternative is what planning with that layout as a hint gives."""
    for a in found.alternatives:
        if a.figures is not None:
            forced = again(plan, model, hints=[f"{name}: {a.words}"], hint_costs=False)
            assert a.figures.step_s == pytest.approx(forced.step_s, **EXACT), a.words


@pytest.fixture(scope="module")
def gpt():
    return planned("gpt", "h100:8", mesh=(8,), mip_gap=1e-4)


@pytest.fixture(scope="module")
def mlp():
    return planned("mlp", mesh=(2, 4))


@pytest.fixture(scope="module")
def moe():
    return planned("moe", mesh=(8,), mip_gap=1e-4)


def test_1_why_is_the_embedding_replicated(gpt):
    found = gpt.explain("wte")
    assert found.chosen == ("whole",) and found.names == ("state.params['wte']",)
    assert {a.words for a in found.alternatives} == {"whole", "rows over x", "columns over x"}
    assert found.alternatives[0].words == "whole"
    check_alternatives(found, gpt, "gpt", "wte")
    assert "whole: columns over x would make the step" in str(found)


def test_2_what_would_two_stages_cost(mlp):
    found = mlp.what_if(stages=2, microbatches=4, mesh=None)
    alone = again(mlp, "mlp", stages=2, microbatches=4, mesh=None)
    assert len(found.after.stages) == 2 and found.after.step_s == pytest.approx(alone.step_s, **EXACT)
    assert found.longer_s == pytest.approx(alone.step_s - mlp.step_s, **EXACT)
    assert found.changed == {"stages": "2", "microbatches": "4", "mesh": "any"}
    assert "waiting for other stages" in str(found) and "2-stage 1F1B, 4 micro-batches" in str(found)


def test_3_which_link_is_the_bottleneck():
    plan = planned("mlp", "h100:2x4", mesh=(2, 4), hints=["params: require data over x"], hint_costs=False)
    link, adds_s = bottleneck(plan)
    # With the mesh's axes along the levels, what runs over x crosses from host to host and nothing else does.
    by_axis = {axis: sum(c.seconds for c in plan.collectives if c.axes == (axis,)) for axis in ("x", "y")}
    assert adds_s == pytest.approx(max(by_axis.values()), **EXACT) and by_axis["x"] > by_axis["y"]
    assert link_text(Cluster.from_dict(plan.cluster), link) == "host to host"
    assert plan.bottleneck().startswith("The bottleneck is host to host: it adds ")


def test_4_why_does_it_not_fit():
    plan = planned("mlp", mesh=(8,))
    found = plan.what_if(memory_bytes=20_000)
    with pytest.raises(autopar.InfeasibleError) as error:
        again(plan, "mlp", memory_bytes=20_000)
    assert found.after is None and found.refused == str(error.value) and math.isinf(found.longer_s)
    assert "short" in found.refused and "Largest holders" in str(found)
    enough = error.value.enough_bytes
    assert plan.what_if(memory_bytes=1.1 * enough).after.peak_bytes <= 1.1 * enough


def test_5_why_are_experts_split(moe):
    found = moe.explain("moe.w1")
    assert found.chosen == ("dim 0 over x",) and any("experts split over x" in line for line in found.used)
    assert found.shape[0] == 8 and found.alternatives[0].words == "dim 0 over x"
    check_alternatives(found, moe, "moe", "moe.w1")


def test_6_what_if_zero_were_forbidden():
    plan = planned("mlp", "cpu:8", mesh=(8,), hints=["params: require zero", "params: require data"], hint_costs=False)
    assert all(max(a.layout) >= 0 for a in plan.arguments if a.kind == "optimizer" and len(a.shape) == 2)
    found = plan.what_if(hints=["params: forbid zero", "params: require data"])
    alone = again(plan, "mlp", hints=["params: forbid zero", "params: require data"], hint_costs=False)
    assert found.after.step_s == pytest.approx(alone.step_s, **EXACT)
    leaves = [a for a in found.after.arguments if a.kind in ("parameter", "optimizer")]
    assert leaves and all(max(a.layout, default=-1) < 0 for a in leaves)  # used whole, so stored whole


def test_7_what_if_attention_had_no_tensor_parallelism():
    plan = planned("gpt", mesh=(8,), mip_gap=1e-3)
    found = plan.what_if(hints=["attn: forbid tensor"])
    alone = again(plan, "gpt", hints=["attn: forbid tensor"], hint_costs=False)
    assert found.after.step_s == pytest.approx(alone.step_s, **EXACT)
    assert found.after.step_s >= plan.step_s * (1 - 1e-3)
    words = "bshk,hkd->bsd"  # the product with wo: no head is split in it any more
    ids = [op.id for op in plan.traced.step.graph.ops if op.where.scope == words and op.primitive == "dot_general"]
    assert {name for i in ids for name in plan.ops[i]} != {name for i in ids for name in found.after.ops[i]} or not ids


def test_8_why_do_activations_lie_so(mlp):
    found = mlp.explain("mlp.py:47", most=4)
    assert found.left_out and len([a for a in found.alternatives if a.by != "dims"]) == 4
    check_alternatives(found, mlp, "mlp", "mlp.py:47")


def test_9_what_excludes_a_layout():
    def step(w, x):
        return w - 0.1 * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)

    shapes = jax.ShapeDtypeStruct((9, 16), "float32"), jax.ShapeDtypeStruct((64, 9), "float32")
    options = autopar.Options(mesh=(8,), strategy="data")
    found = autopar.plan(step, *shapes, cluster="cpu:8", options=options).explain("w")
    by = {a.words: (a.by, a.excluded) for a in found.alternatives}
    assert by["rows over x"] == ("dims", "dim 0 of 9 does not divide by 8")
    assert by["columns over x"][0] == "strategy" and by["whole"] == ("", "")
    hinted = dataclasses.replace(options, strategy="auto", hints=["w: whole"], hint_costs=False)
    found = autopar.plan(step, *shapes, cluster="cpu:8", options=hinted).explain("w")
    assert found.alternative("columns over x").by == "hint" and "'w: whole' says otherwise" in str(found)


def test_10_what_more_memory_would_change():
    plan = planned("mlp", "cpu:4", mesh=(4,), memory_bytes=100_000)
    found = plan.explain("params[1].w")
    assert "whole" not in found.chosen and found.more.words == "whole"
    assert found.more.memory_bytes == found.budget_bytes + found.more.extra_bytes
    enough = again(plan, "mlp", memory_bytes=found.more.memory_bytes)
    same(found.more.figures, enough)
    layouts = {a.name: a.layout for a in enough.arguments}
    assert layouts["state.params[1]['w']"] == (-1,)
    check_alternatives(found, plan, "mlp", "params[1].w")
    assert "With 98.7 KiB more memory" in str(found) and "it would be whole" in " ".join(str(found).split())


def test_11_how_short_memory_is_of_a_layout():
    plan = planned("mlp", mesh=(8,), memory_bytes=36_000)
    a = plan.explain("params[1].w").alternative("whole")
    assert a.by == "memory" and a.figures is None
    with pytest.raises(ShortageError) as error:
        again(plan, "mlp", hints=["params[1].w: whole"], hint_costs=False)
    assert a.short_bytes == pytest.approx(error.value.enough_bytes - 36_000, rel=0.02)


def test_12_inside_a_stage():
    plan = planned("mlp", "cpu:4", microbatches=4, max_stages=2)
    found = plan.explain("params[1].w")
    assert found.stage == 0
    stage = plan.stages[0]
    staged = Sharing(plan.traced).staged(4, plan.chunks, per_microbatch=False)
    step, _ = staged.stage(tuple(s.begin for s in plan.stages), 0)
    assert found.figures.step_s == stage.plan.step_s
    for a in found.alternatives:
        options = autopar.Options(**TIGHT, mesh=stage.plan.mesh_shape, hints=[f"params[1].w: {a.words}"])
        alone = AnyPrice(step, Cluster.from_dict(stage.plan.cluster), options).plan(stage.memory_price).facts
        same(a.figures, alone)


def test_13_what_hints_cost():
    hints = ["params[1].w: whole", "params[2].w: columns over x"]
    plan = planned("mlp", mesh=(8,), hints=hints)
    assert plan.hints == tuple(hints)
    one, other, both = plan.hint_costs
    assert (one.hints, other.hints, both.hints) == ((hints[0],), (hints[1],), tuple(hints))
    for cost, left in ((one, [hints[1]]), (other, [hints[0]]), (both, [])):
        alone = planned("mlp", mesh=(8,), hints=left, hint_costs=False)
        assert cost.step_s == pytest.approx(alone.step_s, **EXACT)
        assert (cost.peak_bytes, cost.collective_bytes) == (alone.peak_bytes, alone.collective_bytes)
    assert "Hints, and what each adds: planned again without it" in str(plan) and "all 2 hints" in str(plan)
