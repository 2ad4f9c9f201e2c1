"""What changed from one plan to another: nothing is missed, nothing is made up, and layers are said once."""

import dataclasses
import json
from pathlib import Path

import pytest

from autopar.mesh import Cluster
from autopar.plan import Certificate, HintCost, MeshAxis, PlanFacts, RunnerUp, StageFacts, from_json, to_json
from autopar.report import diff, diff_text
from tests.report.plans import collective, decoder, layer, leaf, pipeline, trained

GOLDENS = Path(__file__).parent / "goldens"


def only(before, after):
    """The one change there is, as (topic, what, before, after)."""
    (found,) = diff(before, after).changes
    return found.topic, found.what, found.before, found.after


def test_golden(golden):
    wide = [a for i in range(12) for a in layer(i)] + trained("['wte']", (256, 64), (-1, 0))
    after = decoder(12, arrays=wide, microbatches=4, peak_bytes=200 * 2**20, warnings=("kept whole: model.py:3",))
    golden(GOLDENS / "diff.txt", diff_text(diff(decoder(12), after)))


def test_a_plan_is_the_same_as_itself_and_as_its_file():
    for plan in (decoder(12), pipeline()):
        again = from_json(to_json(plan))
        assert diff(plan, again).same and "The plans are the same." in diff_text(diff(plan, again))


def test_how_long_a_plan_was_sought_is_no_difference():
    plan = decoder()
    slow = dataclasses.replace(plan.certificate, build_s=9.0, solve_s=9.0)
    assert diff(plan, dataclasses.replace(plan, certificate=slow)).same


def test_rounding_is_no_difference():
    plan = decoder()
    assert diff(plan, dataclasses.replace(plan, step_s=plan.step_s * (1 + 1e-12))).same
    assert only(plan, dataclasses.replace(plan, step_s=plan.step_s * 1.5)) == ("cost", "step", "16 ms", "24 ms")


def _perturbed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, tuple):
        return value[:-1] if value else None
    return None


OTHERS = {
    "cluster": Cluster.parse("cpu:16").to_dict(),
    "certificate": Certificate("given", 1.0, 0.5, 0.5, "none"),
    "results": (leaf("output 0", (), (-1, -1), "output"),),
    "ops": {3: ("S0", "R")},
    "layouts": {3: (0, -1)},
    "moves": {3: ()},
    "remade": {3: ()},
    "memory": {"parameter": 1},
    "phase_s": {"forward": 1.0},
    "flops": {"bfloat16": 1e9},
    "runners_up": (RunnerUp((2, 2), 1.0, 1, "optimal"),),
    "other_pipelines": pipeline().other_pipelines,
    "mesh": (MeshAxis("x", 4), MeshAxis("y", 2)),
    "stages": pipeline().stages[:1],
    "warnings": ("careful",),
    "hints": ("wte: whole",),
    "hint_costs": (HintCost(("wte: whole",), 1.0, 1, 1),),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PlanFacts)])
def test_no_fact_can_change_unseen(field):
    plan = pipeline() if field == "stages" else decoder()
    other = OTHERS.get(field, _perturbed(getattr(plan, field)))
    assert other is not None and other != getattr(plan, field)
    changed = dataclasses.replace(plan, **{field: other})
    assert not diff(plan, changed).same and not diff(changed, plan).same


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(StageFacts)])
def test_no_fact_of_a_stage_can_change_unseen(field):
    plan = pipeline()
    first = plan.stages[0]
    others = {
        "plan": dataclasses.replace(first.plan, compute_s=1.0),
        "remat": ("full", "none", "none"),
        "again": (collective("all-gather", "x", 5, "S0->R"),),
        "units": (0, 2),
        "devices": (0, 4),
    }
    other = others.get(field, _perturbed(getattr(first, field)))
    assert other is not None and other != getattr(first, field)
    changed = dataclasses.replace(plan, stages=(dataclasses.replace(first, **{field: other}), plan.stages[1]))
    assert not diff(plan, changed).same


def test_layouts_are_said_once_for_all_layers_with_the_sizes_of_axes():
    turned = [dataclasses.replace(a, layout=(-1, -1)) if "w1" in a.name else a for a in decoder(12).arguments]
    found = diff(decoder(12), dataclasses.replace(decoder(12), arguments=tuple(turned)))
    (change,) = found.changes
    assert (change.topic, change.what, change.count) == ("layouts", "state.params.layers[*].w1", 12)
    assert (change.before, change.after) == ("by columns over y=4; state ZeRO-2 over x=2", "whole")


def test_arrays_that_come_go_or_change_shape():
    plan = decoder(1)
    more = dataclasses.replace(plan, arguments=(*plan.arguments, leaf("batch['mask']", (16, 32), (0, -1), "batch")))
    assert only(plan, more) == ("layouts", "batch.mask", "-", "by examples over x=2")
    assert only(more, plan) == ("layouts", "batch.mask", "by examples over x=2", "-")
    long = [dataclasses.replace(a, shape=(32, 32)) if "tokens" in a.name else a for a in plan.arguments]
    assert only(plan, dataclasses.replace(plan, arguments=tuple(long))) == (
        "layouts", "batch.tokens", "i32[16,32] by examples over x=2", "i32[32,32] by examples over x=2",
    )  # fmt: skip


def test_mesh_micro_batches_strategy_and_cluster():
    plan = decoder()
    turned = dataclasses.replace(plan, mesh=(MeshAxis("x", 4), MeshAxis("y", 2)), strategy="fsdp", microbatches=4)
    found = {c.what: (c.before, c.after) for c in diff(plan, turned).changes if c.topic in ("asked", "stages")}
    assert found == {"strategy": ("auto", "fsdp"), "micro-batches": ("1", "4"), "mesh": ("x=2 y=4", "x=4 y=2")}
    faster = Cluster.uniform(8, 2**31, 1e12, 1e-5, 1e9)
    slower = Cluster.uniform(8, 2**31, 1e11, 1e-5, 1e9)
    one, other = (dataclasses.replace(plan, cluster=c.to_dict()) for c in (faster, slower))
    assert [c.what for c in diff(one, other).of("asked")] == ["numbers of the cluster"]


def test_stages_are_compared_one_by_one_or_as_a_cut():
    plan = pipeline()
    a, b = plan.stages
    moved = (
        dataclasses.replace(a, units=(0, 4), remat=("full", "none", "none", "none")),
        dataclasses.replace(b, units=(4, 6)),
    )
    found = diff(plan, dataclasses.replace(plan, stages=moved)).of("stages")
    assert [(c.what, c.before, c.after) for c in found] == [
        ("stage 0: units", "0-2", "0-3"),
        ("stage 0: computes again", "nothing", "full in 1 of 4 units"),
        ("stage 1: units", "3-5", "4-5"),
    ]
    found = {c.what: (c.before, c.after) for c in diff(decoder(), plan).of("stages")}
    assert found["stages"] == ("none", "2") and found["units on devices, by stage"] == ("-", "2x (3 on 8)")


def test_communication_is_compared_by_cause():
    one = decoder(0, [], [collective("all-gather", "x", 2**20, "S0->R", seconds=0.5)])
    two = decoder(
        0,
        [],
        [collective("all-gather", "x", 2**20, "S0->R", seconds=0.25), collective("all-reduce", "y", 8, "P(sum)->R")],
    )
    first, second = diff(one, two).of("communication")
    assert (first.before, first.after, first.values, first.unit) == (
        "1 MiB in 500 ms",
        "1 MiB in 250 ms",
        (0.5, 0.25),
        "s",
    )
    assert first.what.startswith("forward all-gather") and second.before == "-"


def test_the_page_says_how_much_and_does_not_grow_with_depth():
    def page(layers):
        turned = [dataclasses.replace(a, layout=(-1, -1)) if "w1" in a.name else a for a in decoder(layers).arguments]
        after = dataclasses.replace(decoder(layers), arguments=tuple(turned), peak_bytes=600 * 2**20, step_s=0.023)
        return diff_text(diff(dataclasses.replace(decoder(layers), step_s=0.046), after))

    assert "Time of a step -23 ms (50%), memory of the fullest device +300 MiB (100%)." in " ".join(page(12).split())
    assert page(96).count("\n") == page(12).count("\n") and max(map(len, page(96).splitlines())) <= 80


def test_json_is_for_programs():
    data = json.loads(diff(decoder(), decoder(step_s=1.0)).to_json())
    assert not data["same"] and data["after"]["step_s"] == 1.0
    (change,) = [c for c in data["changes"] if c["what"] == "step"]
    assert change["values"] == [0.016, 1.0] and change["unit"] == "s"
