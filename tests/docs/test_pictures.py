"""The pictures in docs/images are what `docs/pictures.py` draws."""

import importlib.util
import xml.etree.ElementTree as ET

import pytest

from tests.docs.blocks import ROOT

spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)


@pytest.mark.parametrize("name", pictures.drawn())
def test_picture_is_current(name):
    text = pictures.drawn()[name]
    assert (pictures.IMAGES / name).read_text() == text, "run python docs/pictures.py"
    assert f"images/{name}" in (ROOT / "docs" / "concepts.md").read_text()
    ET.fromstring(text)
