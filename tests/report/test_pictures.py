"""The pictures in the documentation are those of the pages as they are now."""

import importlib.util
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "docs" / "report_pictures.py"


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("report_pictures", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_current(pictures):
    assert pictures.check() == []


def test_a_picture_that_is_not_current_is_noticed(pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "sha", lambda data: "another")
    assert any("the page looks different now" in said for said in pictures.check())
    monkeypatch.setattr(pictures, "digest", lambda document: "another")
    assert any("the page says something else now" in said for said in pictures.check())
    monkeypatch.setattr(pictures, "RECORD", tmp_path / "none.json")
    assert pictures.check() == ["none.json is missing; make them anew: python docs/report_pictures.py"]


def test_pictures_are_small_and_shown(pictures):
    page = (PLACE.parent / "reading-a-plan.md").read_text()
    for name in pictures.PICTURES:
        assert pictures.picture(name).stat().st_size < 400_000
        assert f"images/report-{name}.png" in page
