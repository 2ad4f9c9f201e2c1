"""Plan files that are not what they should be: the message names the file, what is wrong, and what to do."""

import json
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import autopar
from autopar.plan import FORMAT, to_json
from tests.bad_input.steps import ONE, STATE, X, Y, planned, refused, step
from tests.report.plans import pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    planned().save(path)
    return path


@pytest.fixture
def written(tmp_path):
    """Write a file and load it as a plan."""
    path = tmp_path / "plan.json"

    def load(content, **more):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return autopar.load_plan(path, **more)

    return load


def test_a_missing_file(tmp_path):
    with refused(autopar.PlanError, "no plan file", "nowhere.json", "looked in"):
        autopar.load_plan(tmp_path / "nowhere.json")
    with refused(autopar.PlanError, "cannot read", "directory"):
        autopar.load_plan(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(saved, written, share):
    text = saved.read_text()
    with refused(autopar.PlanError, "not a complete plan file", "line", "truncated", "save the plan again"):
        written(text[: int(len(text) * share)])


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"kind": "something else"}', b"\xff\xfe\x00"])
def test_not_a_plan(written, content):
    with refused(autopar.PlanError, r"plan\.json", "not a plan file", r"plan\.save"):
        written(content)


def test_a_newer_version(saved, written):
    data = json.loads(saved.read_text())
    newer = {**data, "format": 99, "autopar": "9.1", "from the future": True}
    with refused(
        autopar.PlanError, r"newer autopar \(9\.1\)", "format 99", f"up to {FORMAT}", "Upgrade autopar to 9.1 or"
    ):
        written(json.dumps(newer))
    del newer["autopar"]
    with refused(autopar.PlanError, "newer autopar: ", f"up to {FORMAT}", "to a version that reads plan format 99"):
        written(json.dumps(newer))
    with refused(autopar.PlanError, "damaged", "format is '1'"):
        written(json.dumps({**data, "format": "1"}))


WRONG = {
    "name": 3,
    "fingerprint": 7,
    "cluster": {},
    "mesh": [{"name": "x", "size": -8}],
    "arguments": 3,
    "results": None,
    "ops": [],
    "layouts": {"0": "Q9"},
    "moves": {"0": [["R"]]},
    "remade": {"a": []},
    "step_s": "fast",
    "peak_bytes": None,
    "memory": None,
    "collectives": [{"kind": "all-reduce"}],
    "certificate": {},
    "runners_up": [3],
    "warnings": 3,
}


@pytest.mark.parametrize("field", WRONG)
def test_a_damaged_field(saved, written, field):
    data = json.loads(saved.read_text())
    with refused(autopar.PlanError, r"plan\.json is damaged", field, "Save the plan again"):
        written(json.dumps({**data, field: WRONG[field]}))
    del data[field]
    with refused(autopar.PlanError, r"plan\.json is damaged", f"{field!r} is missing", "Save the plan again"):
        written(json.dumps(data))


def test_layouts_that_do_not_fit(saved, written):
    data = json.loads(saved.read_text())

    def laid(words):
        return json.dumps({**data, "arguments": [{**a, "layout": words} for a in data["arguments"]]})

    with refused(autopar.PlanError, "damaged", "places 2 mesh axes, there are 1"):
        written(laid("R,R"))
    with refused(autopar.PlanError, "damaged", r"state\['v'\] of shape \[32, 8\] cannot lie as 'S7'"):
        written(laid("S7"))
    mesh = [{"name": "x", "size": 4}]
    with refused(autopar.PlanError, "damaged", "'mesh'", "4 devices", "the cluster 8"):
        written(json.dumps({**data, "mesh": mesh}))


@pytest.mark.parametrize("backend", ["shard_map", "gspmd"])
@pytest.mark.parametrize(
    "field, words",
    [
        ("ops", ("does not say how to spread", r"at steps\.py:\d+", "Plan again")),
        ("layouts", (r"gives no layout for state\['v'\]", "Plan again")),
    ],
)
def test_a_plan_with_holes(saved, written, field, words, backend):
    plan = written(json.dumps({**json.loads(saved.read_text()), field: {}}))
    with refused(autopar.PlanError, *words):
        autopar.compile(step, STATE, X, Y, plan=plan, options=autopar.Options(backend=backend))


def test_a_file_of_format_1_is_read():
    """Written by autopar before plans had micro-batches and stages."""
    old = autopar.load_plan(Path(__file__).parent / "format-1.json")
    assert old.microbatches == 1 and not old.stages and not old.schedule
    assert old.devices == 8 and " 8 (x)" in str(old)
    assert autopar.plan(step, STATE, X, Y, cluster="cpu:8", options=ONE).arguments == old.arguments


OLD = sorted(Path(__file__).parent.glob("format-*.json"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_files_of_every_format_are_read_shown_compared_and_exported(path, tmp_path):
    """Each was written by the autopar of its time: by ``autopar plan mlp``, but for the first in two stages."""
    data = json.loads(path.read_text())
    assert path.stem == f"format-{data['format']}"
    old = autopar.load_plan(path)
    assert old.step_s == data["step_s"] and len(old.stages) == len(data.get("stages", ()))
    assert f"{'2-stage 1F1B' if old.stages else ' 8 (x)'}" in str(old)
    assert "PartitionSpec" in old.partition_specs() and old.stage_graph().startswith("flowchart")
    old.save(tmp_path / "again.json")
    again = autopar.load_plan(tmp_path / "again.json")
    assert again == old and old.diff(again).same
    assert json.loads((tmp_path / "again.json").read_text())["format"] == FORMAT


def test_there_is_a_file_of_every_format_that_is_read():
    assert [path.name for path in OLD] == [f"format-{n}.json" for n in range(1, FORMAT + 1)]


def test_a_file_says_which_autopar_wrote_it(saved):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert json.loads(saved.read_text())["autopar"] == autopar.__version__ == project["version"]


def test_a_file_of_format_2_is_read(written):
    """Its stages computed everything again, or nothing."""
    data = json.loads(to_json(pipeline()))
    for stage, again in zip(data["stages"], (True, False), strict=True):
        stage["remat"] = again
    old = written(json.dumps({**data, "format": 2}))
    assert [stage.remat for stage in old.stages] == [("full",) * 3, ()]
    for words in (["full"] * 2, ["full", "none", "ful"]):
        data["stages"][1]["remat"] = words
        with refused(autopar.PlanError, "damaged", "stage 1"):
            written(json.dumps(data))


def test_a_file_of_format_5_is_read(written):
    """It does not say how much arithmetic the step is."""
    data = json.loads(to_json(pipeline(flops={"bfloat16": 1e12}, again_flops=1e9)))
    assert written(json.dumps(data)).flops == {"bfloat16": 1e12}
    for at in (data, *(stage["plan"] for stage in data["stages"])):
        del at["flops"], at["again_flops"]
    old = written(json.dumps({**data, "format": 5}))
    assert old.flops == {} and old.again_flops == 0
    with refused(autopar.PlanError, "damaged", "flops"):
        written(json.dumps({**data, "flops": {"bfloat16": "many"}}))


def test_a_plan_for_another_cluster(saved):
    with refused(autopar.PlanError, r"plan\.json was made for cluster 'cpu:8', not for 'cpu:4'", "Plan again"):
        autopar.load_plan(saved, cluster="cpu:4")
    plan = autopar.load_plan(saved, cluster="cpu:8")
    with refused(autopar.PlanError, "made for cluster 'cpu:8', not for 'cpu:4'", "leave the cluster out"):
        autopar.compile(step, STATE, X, Y, plan=plan, cluster="cpu:4")


def test_a_plan_for_another_model(saved):
    plan = autopar.load_plan(saved)
    with refused(autopar.PlanError, "another version of 'step'", "fingerprint", "Plan again"):
        autopar.compile(lambda state, x, y: (state, (x @ state["w"]).sum()), STATE, X, Y, plan=plan)


def test_saving_where_one_cannot(tmp_path):
    plan = planned()
    with refused(autopar.PlanError, "cannot save the plan", "no folder"):
        plan.save(tmp_path / "no" / "plan.json")
    with refused(autopar.PlanError, "cannot save the plan", "directory"):
        plan.save(tmp_path)
    assert not list(tmp_path.parent.glob("*.part")) and not list(tmp_path.iterdir())


def test_a_saved_plan_runs_bit_identically(tmp_path):
    plan = planned()
    plan.save(tmp_path / "plan.json")
    again = autopar.load_plan(tmp_path / "plan.json", cluster="cpu:8")
    assert again == plan
    found, expected = (autopar.compile(step, STATE, X, Y, plan=p)(STATE, X, Y) for p in (again, plan))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


def test_a_mesh_with_other_axes():
    with refused(autopar.PlanError, r"axes \{'x': 8\}", r"found \{'x': 4\}"):
        planned().shardings(jax.make_mesh((4,), ("x",)))
