"""The command line as a person meets it: what is printed, where, and the exit status."""

import json
import os
import re
import subprocess
import sys

import pytest

from autopar.cli import main

MLP = ("mlp", "--cluster", "cpu:8", "--mesh", "2x4")
PIPELINE = ("mlp", "--cluster", "cpu:4", "--microbatches", "2", "--stages", "2", "--schedule", "gpipe")


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    with pytest.raises(SystemExit) as end:
        main(["plan", *MLP, "--save", str(path)])
    assert not end.value.code
    return path


def one_message(text):
    """The words of an error, which a narrow terminal may have broken over lines."""
    assert text.startswith("error: ") and "Traceback" not in text
    return " ".join(text.split())


@pytest.mark.parametrize(
    "command", [(), ("plan",), ("show",), ("diff",), ("export",), ("simulate",), ("sweep",), ("train",), ("models",)]
)
def test_help_shows_examples(capsys, command):
    status, out, _ = run(capsys, *command, "--help")
    assert status == 0
    assert "Examples:\n" in out and f"    autopar {command[0] if command else 'models'}" in out


def test_no_arguments_is_help(capsys):
    _, out, err = run(capsys)
    assert "Commands:" in out + err


def test_plan_shows_a_page_and_its_progress_apart(capsys):
    status, out, err = run(capsys, "plan", *MLP)
    assert status == 0
    assert out.startswith("train_step on cpu:8, strategy auto\n") and "x=2" in out and "y=4" in out
    assert "mesh 2x4: " in err and "mesh 2x4: " not in out


def test_plan_as_json(capsys):
    status, out, _ = run(capsys, "plan", *MLP, "--json", "--strategy", "data")
    data = json.loads(out)
    assert status == 0 and data["kind"] == "autopar plan" and data["strategy"] == "data"


def test_sizes_are_changed(capsys):
    _, out, _ = run(capsys, "plan", "mlp", "--mesh", "8", "--json", "--set", "batch_size=64", "--set", "dtype=bfloat16")
    batch = [a for a in json.loads(out)["arguments"] if a["kind"] == "batch"]
    assert {a["shape"][0] for a in batch} == {64}


def test_saved_plans_are_shown_again(capsys, saved):
    status, out, _ = run(capsys, "show", str(saved))
    assert status == 0 and "x=2" in out and "y=4" in out
    _, text, _ = run(capsys, "show", str(saved), "--json")
    assert json.loads(text) == json.loads(saved.read_text())


def test_plans_are_compared_with_a_status_for_scripts(capsys, saved, tmp_path):
    status, out, _ = run(capsys, "diff", str(saved), str(saved))
    assert status == 0 and "The plans are the same." in out
    other = tmp_path / "other.json"
    run(capsys, "plan", *MLP, "--strategy", "data", "--save", str(other))
    status, out, _ = run(capsys, "diff", str(saved), str(other))
    assert status == 1 and "strategy  auto    data" in out and "Time of a step" in out
    status, out, _ = run(capsys, "diff", str(other), str(saved), "--json")
    data = json.loads(out)
    assert status == 1 and not data["same"] and data["after"]["step_s"] == json.loads(saved.read_text())["step_s"]


@pytest.mark.parametrize(
    "form, start",
    [("specs", 'r"""How '), ("mermaid", "flowchart LR"), ("graphviz", "digraph plan {"), ("perfetto", '{"')],
)
def test_plans_are_exported_to_standard_output_or_a_file(capsys, saved, tmp_path, form, start):
    status, out, _ = run(capsys, "export", str(saved), "--format", form)
    assert status == 0 and out.startswith(start) and out.endswith("\n")
    status, nothing, err = run(capsys, "export", str(saved), "--format", form, "-o", str(tmp_path / "out"))
    assert status == 0 and not nothing and "wrote" in err and (tmp_path / "out").read_text() == out


def test_train_runs_a_saved_plan_and_compares(capsys, saved):
    status, out, err = run(capsys, "train", "mlp", "--plan", str(saved), "--steps", "3")
    assert status == 0
    assert "x=2" in out and "at step 3" in out
    assert "The compiled program runs as planned." in out
    assert "synthetic batches" in err and "step 3/3" in err


def test_train_in_micro_batches(capsys):
    command = (
        "train",
        "mlp",
        "--cluster",
        "cpu:8",
        "--mesh",
        "8",
        "--strategy",
        "data",
        "--steps",
        "2",
        "--set",
        "batch_size=64",
    )
    _, plain, _ = run(capsys, *command)
    status, out, _ = run(capsys, *command, "--microbatches", "4")
    assert status == 0 and "in 4 micro-batches, one after the other" in out
    assert "The compiled program runs as planned." in out
    losses = [line for text in (plain, out) for line in text.splitlines() if line.startswith("loss ")]
    assert len(losses) == 2 and losses[0] == losses[1]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "pipeline.json"
    with pytest.raises(SystemExit) as end:
        main(["plan", *PIPELINE, "--save", str(path)])
    assert not end.value.code
    return path


def test_pipelines_are_planned_and_shown(capsys, pipeline):
    status, out, _ = run(capsys, "show", str(pipeline))
    assert status == 0 and "2-stage GPipe, 2 micro-batches, " in out
    assert "Stages; seconds of one micro-batch" in out and "Other cuts" not in out


def test_train_runs_a_pipeline_and_measures_its_bubble(capsys, pipeline):
    status, out, err = run(capsys, "train", "mlp", "--plan", str(pipeline), "--steps", "3")
    assert status == 0 and "step 3/3" in err
    assert "at step 3" in out and "The compiled pipeline runs as planned." in out
    assert re.search(r"bubble \d+% of .* measured in the last step, \d+% of .* predicted", " ".join(out.split()))


def test_islands_are_planned_and_trained(capsys):
    command = ("mlp", "--cluster", "cpu:2+cpu:2", "--microbatches", "2", "--stages", "2")
    status, out, _ = run(capsys, "plan", *command)
    assert status == 0 and out.startswith("train_step on cpu:2+cpu:2, ")
    status, out, _ = run(capsys, "train", *command, "--steps", "2")
    assert status == 0 and "The compiled pipeline runs as planned." in out


def test_train_on_real_text(capsys):
    status, out, err = run(
        capsys, "train", "gpt", "--set", "layers=1", "--mesh", "8", "--strategy", "data", "--steps", "2"
    )
    assert status == 0 and "data parallel 8 (x)" in out
    assert "standard library's sources" in err and "tokens/s" in err


def test_a_fresh_process_gets_the_devices_of_its_cluster():
    plain = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-m", "autopar", "train", "mlp", "--cluster", "cpu:4", "--mesh", "4", "--steps", "2"]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "over 4 (x)" in done.stdout and "runs as planned" in done.stdout


def test_models(capsys):
    _, out, _ = run(capsys, "models")
    assert "conformer" in out and "118,400" in out
    _, out, _ = run(capsys, "models", "mlp")
    assert "1,006,759,936" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("plan", "gtp"), "unknown model: 'gtp'; did you mean 'gpt'"),
        (("models", "gtp"), "did you mean 'gpt'"),
        (("plan", "gpt", "--preset", "1.3"), "did you mean '1.3b'"),
        (("plan", "mlp", "--set", "layer=3"), "did you mean"),
        (("plan", "mlp", "--set", "batch_size"), "write NAME=VALUE"),
        (("plan", "mlp", "--cluster", "h10:8"), "did you mean 'h100'"),
        (("plan", "mlp", "--cluster", "cpu"), "write 'cpu:8'"),
        (("plan", "mlp", "--cluster", "cpu:4+cpu:4"), "2 islands of devices, cpu:4, cpu:4"),
        (("plan", "mlp", "--cluster", "cpu:4+"), "joins islands by '+'"),
        (("plan", "mlp", "--strategy", "fspd"), "unknown strategy 'fspd': did you mean 'fsdp'?"),
        (("train", "mlp", "--backend", "gspdm"), "did you mean 'gspmd'?"),
        (("plan", "mlp", "--mesh", "2by4"), "--mesh '2by4' is not a mesh shape"),
        (("plan", "mlp", "--mesh", "3x2"), "has 6 devices, but cluster 'cpu:8' has 8"),
        (("plan", "mlp", "--memory", "lots"), "--memory: 'lots' is not a size in bytes"),
        (("plan", "mlp", "--mesh", "8", "--memory", "1KiB"), "KiB"),
        (("plan", "mlp", "--microbatches", "0"), "microbatches must be a whole number from 1 up, or 'auto'; found 0"),
        (("plan", "mlp", "--microbatches", "3"), "cannot be cut into 3 equal micro-batches"),
        (("plan", "convnet", "--microbatches", "2"), "per_microbatch=True"),
        (("plan", "mlp", "--save", "no/such/folder/plan.json"), "there is no folder"),
        (("plan", *PIPELINE[:-1], "1f2b"), "unknown schedule '1f2b': did you mean '1f1b'?"),
        (("plan", *PIPELINE, "--remat", "atention"), "unknown remat 'atention': did you mean 'attention'"),
        (("plan", "mlp", "--microbatches", "2", "--stages", "3"), "3 equal stages do not divide the 8 devices"),
        (("train", "mlp", "--runtime", "rey", "--steps", "1"), "did you mean 'ray'?"),
        (("show", "nowhere.json"), "nowhere.json"),
        (("diff", "nowhere.json", "nowhere.json"), "nowhere.json"),
        (("export", "nowhere.json"), "nowhere.json"),
        (("export", "nowhere.json", "--format", "dot"), "cannot be exported as 'dot': Known: graphviz, mermaid"),
        (("export", "nowhere.json", "-o", "no/such/folder/x"), "there is no folder"),
        (("train", "mlp", "--cluster", "cpu:16", "--mesh", "16"), "jax sees 8 cpu devices"),
    ],
)
def test_mistakes_get_one_clear_message(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and not out
    said = one_message(err[err.index("error: ") :])
    assert words in said


def test_a_plan_of_another_model_is_refused(capsys, saved):
    status, _, err = run(capsys, "train", "mlp", "--set", "batch_size=64", "--plan", str(saved))
    assert status == 2 and "Plan again" in one_message(err[err.index("error: ") :])


def test_a_truncated_plan_is_refused(capsys, saved, tmp_path):
    cut = tmp_path / ("long" * 20) / "cut.json"
    cut.parent.mkdir()
    cut.write_text(saved.read_text()[:100])
    status, _, err = run(capsys, "show", str(cut))
    assert status == 2 and str(cut) in err  # in one piece
    assert "not a complete plan file" in one_message(err)
