"""`autopar predict` as a person meets it."""

import json
import subprocess
import sys

import pytest

import autopar
from autopar.cli import main

GPT = ("gpt:39b", "--cluster", "a100-80gb:64x8", "--tensor", "8", "--pipeline", "2", "--data", "32")


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as end:
        main(["predict", *arguments])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_page(capsys):
    status, out, _ = run(capsys, *GPT, "--microbatch-size", "4", "--remat", "full")
    words = " ".join(out.split())
    assert status == 0
    for part in ("gpt:39b on a100-80gb:64x8", "TFLOP/s per device", "(HFU)", "bubble", "fitted on", "of 74.5 GiB"):
        assert part in words


def test_json_is_what_python_says(capsys):
    status, out, _ = run(capsys, *GPT, "--remat", "full", "--set", "sequence=2048", "--global-batch", "512", "--json")
    found = autopar.predict(
        "gpt:39b", "a100-80gb:64x8", tensor=8, pipeline=2, data=32, remat="full", sequence=2048, global_batch=512
    )
    assert status == 0
    assert json.loads(out) == json.loads(json.dumps(found.to_dict()))
    assert json.loads(out)["peak_bytes"] == found.peak_bytes


def test_sizes_without_a_name(capsys):
    sizes = [
        part for size in ("hidden=64", "layers=2", "heads=8", "sequence=32", "vocab=256") for part in ("--set", size)
    ]
    status, out, _ = run(capsys, *sizes, "--data", "8", "--global-batch", "8", "--json")
    assert (status, json.loads(out)["fits"]) == (0, True)


def test_what_does_not_fit_says_so(capsys):
    _, out, _ = run(capsys, "gpt", "--preset", "39b", "--cluster", "h100:8", "--tensor", "8")
    assert "does NOT fit" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gpt:38b",), "did you mean '39b'"),
        (("gpt:39b", "--cluster", "h100:8", "--tensor", "4"), "data=2 would fit"),
        (("gpt:39b", "--data", "8", "--remat", "full", "--schedule", "1f2b"), "did you mean '1f1b'"),
        (("gpt:39b", "--data", "8", "--set", "layers"), "not a size"),
        (("--data", "8"), "sizes hidden, layers, heads, sequence, vocab are missing"),
    ],
)
def test_errors_are_one_message(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and words in " ".join(err.split())


def test_autopar_does_not_load_the_zoo_before_it_is_asked():
    script = "import sys, autopar; assert 'flax' not in sys.modules; autopar.predict; assert 'flax' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'predicts'"):
        autopar.predicts  # noqa: B018
