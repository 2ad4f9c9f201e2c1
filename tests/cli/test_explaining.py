"""``autopar explain`` and ``--hint`` as a person meets them."""

import json

import pytest

from autopar.cli import main
from autopar.cli.explaining import _named_model, model_text
from tests.cli.test_cli import one_message, run

MLP = ("mlp", "--cluster", "cpu:8", "--mesh", "8")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    with pytest.raises(SystemExit) as end:
        main(["plan", *MLP, "--set", "batch_size=32", "--hint", "[1].w: whole", "--save", str(path)])
    assert not end.value.code
    return path


def test_help_shows_examples(capsys):
    status, out, _ = run(capsys, "explain", "--help")
    assert status == 0 and "Examples:\n" in out and "    autopar explain gpt wte" in out


def test_hints_are_typed_and_their_cost_is_shown(capsys, saved):
    _, out, _ = run(capsys, "show", str(saved))
    assert "Hints, and what each adds: planned again without it" in out and "[1].w: whole" in out
    data = json.loads(saved.read_text())
    assert data["model"] == "mlp --set batch_size=32" and data["hints"] == ["[1].w: whole"]
    status, out, err = run(capsys, "plan", *MLP, "--hint", "[1].w: whole", "--no-hint-costs")
    assert status == 0 and "Hints\n  [1].w: whole" in out and "to say what it costs" not in err


def test_a_name_of_a_model_is_explained(capsys):
    status, out, err = run(capsys, "explain", *MLP[:1], "params[1].w", *MLP[1:])
    assert status == 0 and out.startswith("Why params[1].w lies as it does, mesh x=8\n")
    assert "(as planned)" in out and "columns over x: 0.00" in err


def test_a_saved_plan_says_its_model(capsys, saved):
    status, out, _ = run(capsys, "explain", str(saved), "[1].w", "--json")
    data = json.loads(out)
    assert status == 0 and data["chosen"] == ["whole"]
    assert {a["by"] for a in data["alternatives"]} == {"", "hint"}


def test_a_saved_plan_without_its_model_asks_for_it(capsys, saved, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(saved.read_text()) | {"model": ""}))
    status, _, err = run(capsys, "explain", str(path), "[1].w")
    assert status == 2 and "does not say which model it is of" in one_message(err)
    status, out, _ = run(capsys, "explain", str(path), "[1].w", "--model", "mlp", "--set", "batch_size=32")
    assert status == 0 and "whole (as planned)" in out
    status, _, err = run(capsys, "explain", str(path), "[1].w", "--model", "mlp")
    assert status == 2 and "made for another step" in one_message(err[err.index("error: ") :])


def test_what_if_and_the_bottleneck(capsys):
    status, out, _ = run(capsys, "explain", *MLP, "--what-if", "strategy=data", "--what-if", "hint=[1].w: whole")
    assert status == 0 and out.startswith("What if strategy=data, hints=([1].w: whole), train_step\n")
    status, out, _ = run(capsys, "explain", *MLP)
    assert status == 0 and "The bottleneck is device to device: it adds" in " ".join(out.split())


def test_why_it_does_not_fit(capsys):
    status, out, err = run(capsys, "explain", *MLP, "--memory", "20KiB")
    assert status == 2 and not out and "Largest holders there" in one_message(err[err.index("error: ") :])


def test_a_model_is_written_as_it_was_typed():
    for typed in (("gpt", None, []), ("gpt", "1.3b", ["layers=4", "dtype=bfloat16"])):
        assert _named_model(model_text(*typed)) == typed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("plan", *MLP, "--hint", "whole"), "is not a pattern and what to do there"),
        (("plan", *MLP, "--hint", "wye: whole"), "hint 'wye' matches no argument"),
        (("explain", "mlp", "parms.w", *MLP[1:]), "name 'parms.w' matches no argument"),
        (("explain", *MLP, "--what-if", "stages"), "is not a change; write OPTION=VALUE"),
        (("explain", *MLP, "--what-if", "stage=2"), "did you mean 'stages'"),
        (("explain", *MLP, "--what-if", "stages=two"), "'two' is not a whole number"),
        (("explain", *MLP, "--model", "gpt"), "is no file; leave one of them out"),
        (("explain", "nowhere.json", "w"), "nowhere.json"),
    ],
)
def test_mistakes_get_one_clear_message(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and not out
    assert words in one_message(err[err.index("error: ") :])
