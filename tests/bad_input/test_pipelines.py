"""Pipelines that cannot be, plans with stages that do not fit, and states that are not what they were."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import autopar
from autopar.plan import from_json, to_json
from tests.api.pipelines import SLOW, STATE, X, Y, compiled, planned, step
from tests.bad_input.steps import refused, same


def asked(**options):
    cluster = options.pop("cluster", SLOW)
    return autopar.plan(step, STATE, X, Y, cluster=cluster, options=autopar.Options(**options))


def test_more_stages_than_units():
    with refused(autopar.OptionError, "99 stages were asked for", r"has \d+ units", "4 devices", "Ask for at most 4"):
        asked(microbatches=4, stages=99)


def test_stages_that_do_not_divide_the_devices():
    with refused(autopar.OptionError, "3 equal stages do not divide the 4 devices", "Ask for 1, 2, 4", "max_stages=3"):
        asked(microbatches=4, stages=3)


def test_unknown_schedules_and_counts():
    with refused(
        autopar.OptionError, "unknown schedule '1f2b'", "did you mean '1f1b'", "Known: 1f1b, auto, gpipe, .*zb-h1"
    ):
        autopar.Options(schedule="1f2b")
    for name in ("stages", "max_stages", "microbatches"):
        with refused(autopar.OptionError, f"{name} must be a whole number", "found 0"):
            autopar.Options(**{name: 0})


def test_a_batch_that_does_not_divide():
    with refused(autopar.PlanError, "32", "3"):
        asked(microbatches=3, stages=2)


# plans as files


def test_a_saved_pipeline_runs_like_the_original(tmp_path):
    plan = planned()
    plan.save(tmp_path / "plan.json")
    again = autopar.load_plan(tmp_path / "plan.json", cluster=SLOW)
    assert again == plan and str(again) == str(plan)
    found, expected = (autopar.compile(step, STATE, X, Y, plan=p)(STATE, X, Y) for p in (again, plan))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))
    assert same(found, jax.jit(step)(STATE, X, Y))


WRONG = {
    "schedule": 3,
    "idle_s": "long",
    "pipeline_bound_s": None,
    "other_pipelines": [{"stages": 3}],
    "microbatches": "four",
    "phase_s": 3,
    "stages": [{"plan": {}}],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_damaged_field(field):
    data = json.loads(to_json(planned()))
    with refused(autopar.PlanError, "file is damaged", field, "Save the plan again"):
        from_json(json.dumps(data | {field: WRONG[field]}), "file")


STAGE_WRONG = {"units": [0], "devices": None, "forward_s": "fast", "in_flight": 1.5, "plan": None}


@pytest.mark.parametrize("field", STAGE_WRONG)
def test_a_damaged_field_of_a_stage(field):
    data = json.loads(to_json(planned()))
    first, *rest = data["stages"]
    with refused(autopar.PlanError, "file is damaged", "stages", field, "Save"):
        from_json(json.dumps(data | {"stages": [first | {field: STAGE_WRONG[field]}, *rest]}), "file")
    del first[field]
    with refused(autopar.PlanError, "file is damaged", "stages", field):
        from_json(json.dumps(data | {"stages": [first, *rest]}), "file")


def test_facts_that_contradict_each_other():
    data = json.loads(to_json(planned()))
    first, *rest = data["stages"]
    with refused(autopar.PlanError, "damaged", "stage 0 has devices 0 to 2, its mesh has 2"):
        from_json(json.dumps(data | {"stages": [first | {"devices": [0, 3]}, *rest]}))
    with refused(autopar.PlanError, "damaged", "stage 0", "'mesh'"):
        from_json(json.dumps(data | {"stages": [first | {"plan": first["plan"] | {"mesh": []}}, *rest]}))
    with refused(autopar.PlanError, "damaged", "unknown schedule '1f2b'", "did you mean '1f1b'"):
        from_json(json.dumps(data | {"schedule": "1f2b"}))
    with refused(autopar.PlanError, "damaged", "'microbatches': expected 1 or more, found 0"):
        from_json(json.dumps(data | {"microbatches": 0}))


def test_a_plan_for_another_step():
    def other(state, x, y):
        return step(state, 2 * x, y)

    with refused(autopar.PlanError, "made for another step", "fingerprint", "Plan again"):
        autopar.compile(other, STATE, X, Y, plan=planned())
    with refused(autopar.PlanError, "made for another step", "other shapes", "Plan again"):
        autopar.compile(step, STATE, X[:16], Y[:16], plan=planned())


def test_a_stage_planned_for_another_step():
    plan = planned()
    odd = dataclasses.replace(plan.stages[1], plan=dataclasses.replace(plan.stages[1].plan, fingerprint="0" * 32))
    with refused(autopar.PlanError, "stage 1 was made for another version", "Plan again"):
        autopar.compile(step, STATE, X, Y, plan=dataclasses.replace(plan, stages=(plan.stages[0], odd)))


def test_stages_have_no_layouts_on_one_mesh():
    with refused(autopar.PlanError, "2 stages has no layouts on one mesh", r"plan\.shardings\(mesh, stage=0\)"):
        planned().shardings(jax.make_mesh((4,), ("x",)))


# handles


@pytest.fixture(scope="module")
def pair():
    return compiled()


def test_the_state_of_another_executable(pair):
    state, _ = compiled()(STATE, X, Y)
    with refused(autopar.PlanError, r"argument state\['count'\] is the state of another executable", "pass arrays"):
        pair(state, X, Y)


def test_a_stale_handle(pair):
    first, _ = pair(STATE, X, Y)
    kept = np.asarray(first["layers"][0]["w"])
    second, _ = pair(first, X, Y)
    with refused(autopar.PlanError, r"is the state after step \d+, whose memory step \d+ reused", "numpy.asarray"):
        pair(first, X, Y)
    with refused(autopar.PlanError, "is gone", "Fetch with numpy.asarray before the next step"):
        np.asarray(first["layers"][0]["w"])
    expected = jax.jit(step)(STATE, X, Y)[0]
    assert same(kept, expected["layers"][0]["w"])
    assert same(np.asarray(second["layers"][3]["w"]), jax.jit(step)(expected, X, Y)[0]["layers"][3]["w"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {**s, "count": np.float64(0)}, (r"state\['count'\]", "int32", "float64")),
        (lambda s: {**s, "layers": s["layers"][:3]}, ("missing",)),
        (lambda s: {**s, "more": np.zeros(3)}, (r"unexpected state\['more'\]",)),
        (lambda s: {**s, "layers": [{**s["layers"][0], "b": np.zeros(8)}, *s["layers"][1:]]}, (r"\[16\]", r"\[8\]")),
    ],
    ids=["dtype", "less", "more", "shape"],
)
def test_a_state_of_another_structure(pair, change, words):
    state, _ = pair(STATE, X, Y)
    with refused(autopar.PlanError, *words):
        pair(change(state), X, Y)
    assert same(pair(STATE, X, Y)[1], jax.jit(step)(STATE, X, Y)[1])  # nothing was lost


def test_a_batch_of_another_shape(pair):
    with refused(autopar.PlanError, r"argument x .*float64\[32,16\]", r"found float64\[16,16\]"):
        pair(STATE, X[:16], Y)


def test_nans_pass_as_in_plain_jax(pair):
    x = X.copy()
    x[5, 3] = np.nan
    found, expected = pair(STATE, x, Y), jax.jit(step)(STATE, x, Y)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(np.asarray(a)), np.isnan(np.asarray(b)))
