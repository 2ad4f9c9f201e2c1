"""Every block of README and docs runs or is parsed, and what pages show as printed is. `blocks.py` has the rules."""

import re
import textwrap
from pathlib import Path

import jax
import pytest

from autopar.cli import main
from autopar.mesh import LINKS, Cluster
from tests.docs.blocks import COMMANDS, PAGES, ROOT, Block, BlockError, blocks, parse, run_page, same, split_commands

WIDTH = 86  # of output that a refresh writes


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def as_a_reader_has_it():
    """32-bit types, as jax has them by default."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


def pages():
    """Those with blocks; such as run Ray are marked."""
    for page in PAGES:
        if found := blocks(page):
            ray = any(b.language == "python" and 'runtime="ray"' in b.text and b.note[0] != "not run" for b in found)
            yield pytest.param(page, id=name(page), marks=[pytest.mark.ray] if ray else [])


@pytest.mark.parametrize("page", list(pages()))
def test_page(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names = {"__name__": "__main__"}
    wrong = [(block, printed) for block, printed in run_page(page, names) if not same(block.text, printed)]
    if wrong and request.config.getoption("--update-goldens"):
        refresh(page, wrong)
        return
    for block, printed in wrong:
        raise BlockError(f"{block.place}: not what is printed (--update-goldens rewrites it):\n{printed}")
    if check := CHECKS.get(name(page)):
        check(names, tmp_path)
    jax.clear_caches()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_help_are_commands(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = re.sub(r"\\\n\s*", "", capsys.readouterr().out.split("Arguments:")[0].split("Options:")[0])
    examples = re.findall(r"^ +autopar (.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        for program, *words in split_commands(f"autopar {example}"):
            if program == "autopar":
                parse(Block(ROOT / "README.md", 0, "sh", example), words)


def refresh(page, wrong):
    """Write what was printed into the page."""
    lines = page.read_text().splitlines()
    for block, printed in reversed(wrong):
        new = [piece for line in printed.rstrip().splitlines() for piece in wrapped(line.rstrip())]
        lines[block.line : block.line + block.text.count("\n")] = new
    page.write_text("\n".join(lines) + "\n")


def wrapped(line):
    """As it is, or where it is too long as several lines."""
    return textwrap.wrap(line, WIDTH, break_on_hyphens=False) if len(line) > WIDTH else [line]


def getting_started(names, folder):
    assert names["plan"].devices == 16 and names["train_step"].executable.audit.agrees
    hinted = names["autopar"].Options(mesh=(2, 4), hints={"state*w1*": "R,S1"})
    step, shapes = names["train_step"].__wrapped__, names["shapes"]
    found = names["autopar"].plan(step, *shapes, cluster="cpu:8", options=hinted)
    assert next(a.layout for a in found.arguments if a.name.endswith("['params']['w1']")) == (-1, 1)


def simulation(names, folder):
    assert (folder / "trace.json").exists() and names["line"].units == 512


def sweeps(names, folder):
    assert (folder / "sweep.csv").exists() and names["table"].best()[0].cluster == "h100:1"


def models(names, folder):
    assert float(names["metrics"]["loss"]) > 0
    assert names["shapes"][1]["tokens"].shape == (1024, 1024)


def predicting(names, folder):
    found = names["found"]
    assert sum(found.seconds.values()) == pytest.approx(found.step_s) and found.fits


def clusters(names, folder):
    page = ROOT / "docs" / "clusters.md"
    full, islands = (block.text for block in blocks(page) if block.language == "toml")
    for stem, text in (("full", full), ("islands", islands)):
        Path(f"{stem}.toml").write_text(text)
    cluster = Cluster.load("full.toml")
    assert [level.name for level in cluster.levels] == ["device", "host", "pod", "site"]
    assert (cluster.name, cluster.devices) == ("two buildings", 512)
    assert cluster.levels[2].bytes_per_s == 3.2e12 / 128 and cluster.levels[3].bytes_per_s == 50e9 / 256
    cluster = Cluster.load("islands.toml")
    assert cluster.joint(0, 1).bytes_per_s == 25e9 / 8
    assert cluster.joint(0, 2).latency_s == LINKS["region"].latency_s
    texts = re.findall(r"^\| `([^`]+)`", page.read_text(), re.MULTILINE)
    assert len(texts) == 6
    assert all(Cluster.parse(text).devices > 0 for text in texts if not text.endswith(".toml"))


def plan_format(names, folder):
    assert (folder / "newer.json").exists() and names["autopar"].load_plan("plan.json") == names["plan"]


def reading_a_plan(names, folder):
    assert (folder / "plan.html").read_text().startswith("<!doctype html>")


CHECKS = {
    "docs/reading-a-plan.md": reading_a_plan,
    "docs/plan-format.md": plan_format,
    "docs/getting-started.md": getting_started,
    "docs/simulation.md": simulation,
    "docs/sweeps.md": sweeps,
    "docs/models.md": models,
    "docs/predicting.md": predicting,
    "docs/clusters.md": clusters,
}
