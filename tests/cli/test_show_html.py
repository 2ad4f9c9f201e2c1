"""``autopar show --html``: the page, a measured step on it, and what is refused."""

import jax
import pytest

import autopar
from autopar.models import get
from autopar.simulate import ReadSpan
from tests.cli.test_cli import one_message, run


@pytest.fixture(scope="module")
def ran():
    """A pipeline of two stages that ran a step, and what was measured."""
    recipe = get("mlp")
    options = autopar.Options(microbatches=2, stages=2)
    state, batch = recipe.init(jax.random.key(0)), recipe.batch(0)
    step = autopar.compile(recipe.step, state, batch, cluster="cpu:4", options=options, donate_argnums=0)
    step.timed(state, batch)
    return step


@pytest.fixture
def saved(ran, tmp_path):
    ran.plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_page_is_written(saved, tmp_path, capsys):
    status, out, err = run(capsys, "show", str(saved), "--html", str(tmp_path / "page.html"))
    assert (status, out) == (0, "") and f"wrote {tmp_path / 'page.html'}" in err
    assert "2-stage 1F1B" in (tmp_path / "page.html").read_text()


def test_a_measured_step_is_on_it(ran, saved, tmp_path, capsys):
    ran.plan.simulate().to_perfetto(tmp_path / "trace.json", measured=ran.timeline)
    page = tmp_path / "page.html"
    status, _, _ = run(capsys, "show", str(saved), "--html", str(page), "--measured", str(tmp_path / "trace.json"))
    assert status == 0 and "stage 1, measured" in page.read_text()
    ran.plan.to_html(tmp_path / "direct.html", measured=ran.timeline)
    assert (tmp_path / "direct.html").read_text().count(", measured") == page.read_text().count(", measured")


def test_what_is_refused(ran, saved, tmp_path, capsys):
    status, _, err = run(capsys, "show", str(saved), "--measured", "trace.json")
    assert status == 2 and "add --html plan.html" in one_message(err)
    status, _, err = run(capsys, "show", str(saved), "--html", str(tmp_path / "no" / "page.html"))
    assert status == 2 and "no folder" in one_message(err)
    status, _, err = run(capsys, "show", str(saved), "--html", str(tmp_path / "p.html"), "--measured", str(saved))
    assert status == 2 and "is not a trace with measured spans" in one_message(err)
    with pytest.raises(autopar.OptionError, match="have stage 5"):
        ran.plan.to_html(tmp_path / "p.html", measured=[ReadSpan(0, 5, "forward", 0, 0.0, 1.0)])
