"""PartitionSpecs as text: what the text says when it runs is what the plan says, for every array."""

import re

import jax
import pytest
from jax.sharding import NamedSharding

from autopar.api import Plan
from autopar.lower import partition_spec
from autopar.plan import MeshAxis
from autopar.report.specs import partition_specs, rules, spec_text
from tests.report.plans import PARAMS, WHOLE, change, decoder, leaf, pipeline, trained
from tests.report.test_saved import ALL, saved


def module(plan):
    """The text, run."""
    names = {}
    exec(compile(partition_specs(plan), "specs.py", "exec"), names)
    return names


@pytest.mark.parametrize("layout", [(-1, -1), (0, -1), (1, -1), (0, 0), (1, 0), (2, 2), (-1, 2)])
def test_the_text_of_a_spec_is_the_spec(layout):
    expected = partition_spec(layout, 3, ("x", "y"))
    assert eval(spec_text(layout, 3, ("x", "y")), {"P": jax.sharding.PartitionSpec}) == expected


def test_without_stages_the_text_makes_the_shardings_of_the_plan():
    plan = decoder(12)
    found = module(plan)
    mesh = found["mesh"](jax.devices())
    expected = Plan.of(plan).shardings(jax.sharding.Mesh(mesh.devices, ("x", "y")))
    assert dict(mesh.shape) == {"x": 2, "y": 4} and len(expected) == len(plan.arguments)
    assert {a.name: NamedSharding(mesh, found["spec"](a.name)) for a in plan.arguments} == expected
    assert len(found["RULES"]) == 3 * 4 + 3  # w1, w2, scale and wte, each with its states; layers once


@pytest.mark.parametrize("name", ALL)
def test_of_saved_plans_each_path_has_one_rule_and_it_is_right(name):
    plan = saved(name)
    found = module(plan)
    tables = [stage["rules"] for stage in found["STAGES"]] if plan.stages else [found["RULES"]]
    parts = [stage.plan for stage in plan.stages] or [plan]
    paths = {a.name for part in parts for a in part.arguments if a.name}
    for table, part in zip(tables, parts, strict=True):
        own = {a.name: partition_spec(a.layout, len(a.shape), part.axis_names) for a in part.arguments if a.name}
        for path in paths:
            assert [spec for pattern, spec in table if re.fullmatch(pattern, path)] == (
                [own[path]] if path in own else []
            )
    assert partition_specs(plan).count("\n") < 120 * len(parts) + 60


def test_with_stages_each_has_its_mesh_and_its_arrays():
    first, second = pipeline().stages
    other = change(second.plan, mesh=(MeshAxis("x", 4), MeshAxis("y", 2)))
    plan = pipeline(stages=(first, change(second, plan=other)))
    found = module(plan)
    devices = list(range(16))
    mesh = found["mesh"]
    assert [stage["mesh"] for stage in found["STAGES"]] == [{"x": 2, "y": 4}, {"x": 4, "y": 2}]
    assert found["STAGES"][1]["devices"] == (8, 16) and len(devices) == 16
    assert dict(mesh(0, jax.devices()).shape) == {"x": 2, "y": 4}
    assert found["spec"](1, "state.nothing") is None
    for s, stage in enumerate(plan.stages):
        for a in stage.plan.arguments:
            assert found["spec"](s, a.name) == partition_spec(a.layout, len(a.shape), ("x", "y"))


def test_layers_that_lie_otherwise_have_rules_of_their_own():
    arrays = [
        leaf(f"{PARAMS}['l'][{i}]['w{k}']", (64, 64), (-1, k if i != 7 else 1 - k), "parameter")
        for i in range(12)
        for k in (0, 1)
    ]
    found = rules(arrays, ("x", "y"))
    assert len(found) == 4
    for a in arrays:
        (spec,) = [spec for pattern, spec in found if re.fullmatch(pattern, a.name)]
        assert spec == spec_text(a.layout, 2, ("x", "y"))


def test_names_that_look_like_patterns_or_hold_quotes():
    odd = [
        leaf(f"{PARAMS}{key}", (8,), WHOLE, "parameter") for key in ("['a.b']", "['a*']", '["it\'s"]', "['a+b (c)']")
    ]
    found = module(decoder(0, odd, []))
    for a in odd:
        assert found["spec"](a.name) == jax.sharding.PartitionSpec()
    with pytest.raises(StopIteration):
        found["spec"](f"{PARAMS}['axb']")


def test_a_step_without_parameters_is_written_too():
    assert module(decoder(0, [], []))["spec"]("batch['tokens']") == jax.sharding.PartitionSpec("x")
    assert "data parallel" in partition_specs(decoder(0, trained("['w']", (8, 8), WHOLE), []))
