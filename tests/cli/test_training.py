"""``autopar train`` as a person meets it: metrics as they come, evaluation, seeds, data of one's own."""

import json

import numpy as np
import pytest

from autopar.models import get
from tests.cli.test_cli import one_message, run

QUICK = ("--cluster", "cpu:8", "--mesh", "8", "--strategy", "data")
TINY = ("mlp", *QUICK, "--set", "layers=2")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(capsys, path, *arguments):
    status, out, err = run(capsys, "train", *arguments, "--metrics", str(path))
    assert status == 0, err
    return rows(path), out


def test_metrics_and_evaluation(capsys, tmp_path):
    found, out = trained(capsys, tmp_path / "m.jsonl", *TINY, "--steps", "5", "--eval-every", "2")
    assert [row["step"] for row in found if "evaluation" not in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in found if "evaluation" in row] == [2, 4, 5]
    timed = [row for row in found if "step_s" in row]
    assert len(timed) == 4 and all(row["examples_per_s"] * row["step_s"] == pytest.approx(16) for row in timed)
    recipe = get("mlp", layers=2)
    peak = recipe.flops() / timed[0]["step_s"] / timed[0]["mfu"]
    assert peak == pytest.approx(8 * 10e9)
    assert f"after step 5: loss {found[-1]['evaluation']['loss']:.4f}" in out
    assert "examples/s" in out and "MFU" in out


def test_evaluation_is_that_of_the_state_on_one_device(capsys, tmp_path):
    # Whole and in stages, after the same steps, on the same batches.
    whole, _ = trained(capsys, tmp_path / "a", *TINY, "--steps", "3", "--eval-every", "3")
    command = ("mlp", "--set", "layers=2", "--cluster", "cpu:2", "--stages", "2", "--microbatches", "2")
    staged, _ = trained(capsys, tmp_path / "b", *command, "--steps", "3", "--eval-every", "3")
    assert whole[-1]["evaluation"]["loss"] == pytest.approx(staged[-1]["evaluation"]["loss"], rel=1e-4)
    assert whole[0]["loss"] == pytest.approx(staged[0]["loss"], rel=1e-5)


def test_seeds_repeat_and_differ(capsys, tmp_path):
    def losses(seed):
        found, _ = trained(capsys, tmp_path / "m", *TINY, "--steps", "2", "--seed", seed)
        return [row["loss"] for row in found]

    assert losses("1") == losses("1") != losses("2")


def test_the_learning_rate_decays_to_the_last_step(capsys, tmp_path):
    slow, _ = trained(capsys, tmp_path / "a", *TINY, "--steps", "3", "--warmup", "2", "--decay", "cosine")
    fast, _ = trained(capsys, tmp_path / "b", *TINY, "--steps", "3")
    assert slow[0]["loss"] == fast[0]["loss"] and slow[2]["loss"] > fast[2]["loss"]


def test_bfloat16_on_a_file_of_text(capsys, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("to be or not to be " * 200)
    command = ("gpt", *QUICK, "--set", "layers=1", "--dtype", "bfloat16", "--learning-rate", "1e-2")
    found, out = trained(capsys, tmp_path / "m", *command, "--steps", "12", "--data", str(text))
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert "in bfloat16" in out and "bf16[" not in out  # parameters stay float32


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--decay", "cosin"), "did you mean 'cosine'"),
        (("--dtype", "f16"), "unknown dtype: 'f16'"),
        (("--decay", "cosine", "--warmup", "9", "--steps", "5"), "total_steps must be larger"),
        (("--metrics", "no/such/folder/m.jsonl"), "--metrics no/such/folder/m.jsonl: there is no folder"),
        (("--data", "mine.txt"), "only models of tokens and targets"),
    ],
)
def test_mistakes(capsys, arguments, hint):
    status, out, err = run(capsys, "train", *TINY, *arguments)
    assert status == 2 and not out and hint in one_message(err)


def test_damaged_data(capsys, tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    status, _, err = run(capsys, "train", "convnet", *QUICK, "--data", str(tmp_path / "cut.npz"))
    assert status == 2 and "damaged or of another kind" in one_message(err)
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    status, _, err = run(capsys, "train", "convnet", *QUICK, "--data", str(tmp_path / "other.npz"))
    assert status == 2 and "but it has x" in one_message(err)
