"""The numbered examples run, and say what they are there to say."""

import importlib.util
import re

import jax
import pytest

from tests.docs.blocks import ROOT

FOLDER = ROOT / "examples"
SAID = {
    "01_shard_a_step": r"step 50: loss 0\.00\d+\nw1 lies as P\(.*'.*\n.*compiled as planned: True",
    "02_read_a_plan": r"data parallel 2 across hosts .*\nstep +\d+ ms.*\n(.*\n)*saved; loads as the same plan: True",
    "03_pipeline": r"(units \d+-\d+ on devices .*\n){4}bubble: \d+%(.*\n)*step 20: loss 0\.\d+",
    "04_mixture_of_experts": r"auto +\d.*expert parallel 8 \(x; all-to-all\)\ndata +\d.*: data parallel 8 \(x\)",
    "05_own_cluster": r"10 Gbit/s .* ms a step\n +data .*\n400 Gbit/s .* a step\n +data .*tensor parallel 4 ",
    "06_sweep": r"h100:1 +auto .* efficiency 100%\n(.*\n)*h100:8 +data .* efficiency \d\d%",
    "07_hints": r"free .*\nhinted .*\nthe hint costs \+\d+\.\d% time",
    "08_custom_rule": r"without: normalised at 08_custom_rule.py:\d+ .*\nwith: 0 warnings.*\nand the numbers",
    "09_another_trainer": r"loss \d\.\d+; arrays of the state lie in [2-9] layouts, such as P\(.*'[xy]'",
    "10_ray": r"step 10: loss \d.\d+\n\d+ programs ran on 2 stages in \d+\.\d ms",
}


def test_every_example_is_named_here_and_in_the_readme():
    found = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    assert found == sorted(SAID)
    table = re.findall(r"^\| `(?:frameworks/)?(\w+)\.py`", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted([path.stem for path in FOLDER.rglob("*.py")])


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.ray] if "ray" in n else []) for n in SAID])
@pytest.mark.filterwarnings("ignore::autopar.errors.MemoryWarning")
def test_example(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        spec.loader.exec_module(module)
        module.main()
    finally:
        jax.config.update("jax_enable_x64", before)
    assert re.search(SAID[name], capsys.readouterr().out)
