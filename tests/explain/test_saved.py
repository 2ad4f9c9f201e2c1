"""Plans in files keep their hints and their model, older files are read, and a saved plan is explained."""

import json

import pytest

import autopar
from autopar.api.explaining import options_of
from autopar.models import get
from autopar.plan import FORMAT, from_json, to_json

NEW = ("hints", "hint_costs", "model")


@pytest.fixture(scope="module")
def plan():
    recipe = get("mlp")
    options = autopar.Options(mesh=(8,), hints=["params[1].w: whole"])
    return autopar.plan(recipe.step, *recipe.abstract(), cluster="cpu:8", options=options, donate_argnums=0)


def test_hints_and_what_they_cost_are_saved(plan):
    again = from_json(to_json(plan))
    assert FORMAT == 7 and again.hints == plan.hints == ("params[1].w: whole",)
    assert again.hint_costs == plan.hint_costs and len(again.hint_costs) == 1


def test_a_file_of_format_6_is_read(plan):
    data = {k: v for k, v in json.loads(to_json(plan)).items() if k not in NEW} | {"format": 6}
    old = from_json(json.dumps(data))
    assert (old.hints, old.hint_costs, old.model) == ((), (), "")
    assert (old.step_s, old.ops, old.layouts) == (plan.step_s, plan.ops, plan.layouts)


def test_a_saved_plan_is_explained_with_its_step(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    saved, recipe = autopar.load_plan(tmp_path / "plan.json"), get("mlp")
    found = saved.explain("params[2].w", step=recipe.step, args=recipe.abstract(), donate_argnums=0)
    assert found == plan.explain("params[2].w")
    assert options_of(saved).known == plan.options.known
    other = saved.what_if(step=recipe.step, args=recipe.abstract(), donate_argnums=0, hints=[])
    assert other.after.step_s <= saved.step_s and json.loads(other.to_json())["after"]["hints"] == []
    assert json.loads(found.to_json())["chosen"] == list(found.chosen)


def test_stages_remember_what_memory_was_worth():
    recipe = get("mlp")
    options = autopar.Options(microbatches=2, max_stages=2)
    found = autopar.plan(recipe.step, *recipe.abstract(), cluster="cpu:4", options=options)
    again = from_json(to_json(found))
    assert [s.memory_price for s in again.stages] == [s.memory_price for s in found.stages]
    assert options_of(again).max_stages == 2 and options_of(again).microbatches == 2
