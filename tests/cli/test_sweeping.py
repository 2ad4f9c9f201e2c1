"""``autopar sweep`` as a person meets it."""

import json

import pytest

from autopar.cli.sweeping import parse_counts
from tests.cli.test_cli import one_message, run

SWEEP = ("sweep", "mlp", "--cluster", "cpu", "--devices", "1,2,4")


def test_a_sweep_shows_a_table_and_keeps_it(capsys, tmp_path):
    out = tmp_path / "sweep"
    status, text, err = run(capsys, *SWEEP, "--strategy", "auto,data", "--out", str(out))
    assert status == 0
    assert text.startswith("sweep of train_step\n6 of 6 points have a plan; strong scaling\n")
    assert "6/6" in err and "cpu:4, data" in err and "wrote sweep.csv" in err
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert [r["devices"] for r in rows] == [1, 1, 2, 2, 4, 4] and {r["units"] for r in rows} == {16}
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    status, again, _ = run(capsys, *SWEEP, "--strategy", "auto,data", "--out", str(out))
    assert status == 0 and again == text
    status, _, err = run(capsys, *SWEEP, "--strategy", "auto", "--out", str(out))
    assert status == 2 and "holds another sweep" in one_message(err[err.index("error: ") :])


def test_weak_scaling_grows_the_batch(capsys, tmp_path):
    status, text, _ = run(capsys, *SWEEP, "--strategy", "data", "--weak", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert status == 0 and "weak scaling" in text and [r["units"] for r in rows] == [16, 32, 64]


def test_plans_are_run(capsys, tmp_path):
    more = ("--cluster", "cpu", "--devices", "1,2", "--run", "2", "--out", str(tmp_path))
    status, text, _ = run(capsys, "sweep", "mlp", *more)
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert status == 0 and "measured" in text and all(r["measured_step_s"] > 0 for r in rows)


def test_what_does_not_fit_is_a_row(capsys):
    status, text, _ = run(capsys, *SWEEP, "--memory", "150KiB")
    assert status == 0 and "2 of 3 points have a plan" in text and "No plan" in text
    assert "cpu:1, auto, 1: train_step does not fit" in " ".join(text.split())


@pytest.mark.parametrize(
    "typed, words",
    [
        (("--cluster", "h100"), "either --hosts 1,2,4,...,256 or --devices"),
        (("--cluster", "h100", "--hosts", "1,2", "--devices", "8"), "either --hosts"),
        (("--cluster", "h100:8", "--hosts", "1,2"), "leave --hosts and --devices out"),
        (("--cluster", "h100", "--hosts", "1,two"), "'two' is not a number of 1 or more"),
        (("--cluster", "h100", "--hosts", "0,1"), "'0' is not a number of 1 or more"),
        (("--cluster", "h100", "--hosts", "4,2"), "does not rise"),
        (("--cluster", "h100", "--hosts", "1,...,8"), "'...' stands between two numbers and a last one"),
        (("--cluster", "h100", "--hosts", "2,4,...,9"), "'...' stands between"),
        (("--cluster", "h100", "--hosts", "1,2,..."), "'...' stands between"),
        (("--cluster", "h1000", "--hosts", "1,2"), "no device is called 'h1000'"),
        (("--cluster", "cpu", "--hosts", "1,2"), "--per-host 8"),
        (("--cluster", "h100", "--hosts", "1", "--per-host", "16"), "at most 8"),
        (("--cluster", "h100", "--devices", "8,9"), "9 devices are more than one host's 8"),
        (("--cluster", "h100", "--devices", "8", "--per-host", "4"), "--per-host goes with --hosts"),
        (("--cluster", "cpu", "--devices", "3,4", "--weak"), "Begin with fewer devices"),
        (("--cluster", "cpu", "--devices", "1", "--strategy", "auto,fsdq"), "did you mean 'fsdp'"),
        (("--cluster", "cpu", "--devices", "1", "--microbatches", "1,many"), "microbatches must be a whole number"),
        (("--cluster", "cpu", "--devices", "1", "--out", "nowhere/at/all"), "cannot keep a sweep"),
    ],
)
def test_what_makes_no_sense(capsys, typed, words):
    status, out, err = run(capsys, "sweep", "mlp", *typed)
    assert status == 2 and not out
    assert words in one_message(err[err.index("error: ") :])


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("8", [8]),
        ("1,2,4,...,256", [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        ("1,3,...,81", [1, 3, 9, 27, 81]),
        ("1,2,3,...,6", [1, 2, 3, 4, 5, 6]),
        ("5,10,...,25, 100", [5, 10, 15, 20, 25, 100]),
        ("1,2,...,2", None),
        ("1,2,4,…,16", [1, 2, 4, 8, 16]),
    ],
)
def test_series_go_on_by_ratio_or_by_difference(text, numbers):
    if numbers is None:
        with pytest.raises(ValueError, match=r"\.\.\."):
            parse_counts("--hosts", text)
    else:
        assert parse_counts("--hosts", text) == numbers
