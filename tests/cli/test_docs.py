"""The code of the guides runs as printed."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_getting_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [b for b in BLOCK.findall((DOCS / "getting-started.md").read_text()) if "my_primitive_p" not in b]
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "getting-started.md", "exec"), names)
    assert capsys.readouterr().out.endswith("True\n")
    assert names["plan"].devices == 16
    hinted = names["autopar"].Options(mesh=(2, 4), hints={"state*w1*": "R,S1"})
    step, shapes = names["train_step"].__wrapped__, names["shapes"]
    found = names["autopar"].plan(step, *shapes, cluster="cpu:8", options=hinted)
    assert next(a.layout for a in found.arguments if a.name.endswith("['params']['w1']")) == (-1, 1)


@pytest.mark.parametrize("page", ["simulation.md", "sweeps.md"])
def test_simulation_and_sweeps(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCK.findall((DOCS / page).read_text())
    names = {}
    exec(compile(block, page, "exec"), names)
    if page == "simulation.md":
        assert (tmp_path / "trace.json").exists() and names["line"].units == 512
    else:
        assert (tmp_path / "sweep.csv").exists() and capsys.readouterr().out.startswith("h100:1 ")


def test_models():
    (block,) = BLOCK.findall((DOCS / "models.md").read_text())
    names = {}
    exec(compile(block, "models.md", "exec"), names)
    assert float(names["metrics"]["loss"]) > 0
    assert names["shapes"][1]["tokens"].shape == (1024, 1024)


def test_predicting(capsys):
    (block,) = BLOCK.findall((DOCS / "predicting.md").read_text())
    names = {}
    exec(compile(block, "predicting.md", "exec"), names)
    found = names["found"]
    assert sum(found.seconds.values()) == pytest.approx(found.step_s)
    assert found.fits and capsys.readouterr().out


@pytest.mark.parametrize("page", ["diffs.md", "exporting.md", "plan-format.md"])
def test_what_can_be_done_with_a_plan(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = BLOCK.findall((DOCS / page).read_text())
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    said = capsys.readouterr().out
    words = {"diffs.md": "Time of a step", "exporting.md": "flowchart LR", "plan-format.md": "Upgrade autopar to 9.1"}
    assert len(blocks) > 1 and words[page] in said
