"""Every class of error has a section in docs/errors.md, and its example raises it."""

import inspect
import re

from autopar import errors
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text()
CLASSES = [
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Exception) and kind is not errors.AutoparError
]


def sections():
    """Heading -> its text."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_class_has_an_example_of_its_own():
    found = sections()
    assert sorted(found) == sorted(CLASSES)
    for name, text in found.items():
        assert f"<!-- output -->\n```text\n{name}: " in text, name


def test_the_table_lists_them_in_the_order_of_the_page():
    assert re.findall(r"^\| \[`(\w+)`\]\(#", PAGE, re.MULTILINE) == list(sections())
