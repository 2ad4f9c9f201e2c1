"""``autopar simulate`` as a person meets it."""

import json

import pytest

from autopar.cli import main
from tests.cli.test_cli import PIPELINE, one_message, run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    with pytest.raises(SystemExit):
        main(["plan", *PIPELINE, "--save", str(path)])
    return path


def test_a_saved_plan_is_simulated_and_traced(capsys, saved, tmp_path):
    trace = tmp_path / "trace.json"
    status, out, err = run(capsys, "simulate", str(saved), "--trace", str(trace))
    assert status == 0 and f"wrote {trace}" in " ".join(err.split())
    assert out.startswith("train_step on cpu:4, simulated\n2 workers, 2 micro-batches: 10 tasks and 4 messages")
    assert "MFU" in out and "/s," not in out  # nobody said how many tokens there are
    assert {e["ph"] for e in json.loads(trace.read_text())["traceEvents"]} == {"M", "X", "C"}


def test_a_model_is_planned_first_and_counted(capsys):
    status, out, _ = run(capsys, "simulate", *PIPELINE, "--budget", "1e6", "--price", "3")
    assert status == 0 and "16 examples per step" in out
    assert "A run of 1e+06 examples" in out and "steps         62,500" in out and "cost " in out


def test_a_saved_plan_is_counted_by_its_model(capsys, saved):
    status, out, _ = run(capsys, "simulate", str(saved), "--model", "mlp", "--budget", "160")
    assert status == 0 and "16 examples per step" in out and "steps         10" in out
    status, out, _ = run(capsys, "simulate", str(saved), "--units", "32", "--unit", "pictures")
    assert status == 0 and "32 pictures per step" in out


@pytest.mark.parametrize(
    "more, words",
    [
        (("--model", "gpt"), "the plan was made for another step"),
        (("--model", "mlp", "--set", "batch_size=64"), "or for other shapes"),
        (("--budget", "1e9"), "--units"),
        (("--price", "2"), "say how long it is: --budget"),
        (("--units", "-3"), "units=-3.0 makes no sense"),
        (("--trace", "nowhere/trace.json"), "there is no folder"),
    ],
)
def test_what_makes_no_sense(capsys, saved, more, words):
    status, out, err = run(capsys, "simulate", str(saved), *more)
    assert status == 2 and not out and words in one_message(err)


def test_a_file_that_is_not_there_and_a_model_of_a_model(capsys):
    status, _, err = run(capsys, "simulate", "nowhere.json")
    assert status == 2 and "no plan file" in one_message(err)
    status, _, err = run(capsys, "simulate", "mlp", "--model", "mlp")
    assert status == 2 and "is no file" in one_message(err)
