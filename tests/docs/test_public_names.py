"""The check of the reference finds what is not told."""

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location("public_names", ROOT / "docs" / "_ext" / "public_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def two_of_two(first, second):
    """Joined: ``first`` and ``second``."""


def one_of_two(first, second):
    """Joined.

    Args:
      first: the one.
    """


def told_as_a_pair(first, second):
    """Joined.

    Args:
      first, second: both.
    """


def a_line(first):
    """Does it."""


def untold(first): ...


def test_parameters(checker):
    assert checker.untold(two_of_two, strict=True) == []
    assert checker.untold(told_as_a_pair, strict=True) == []
    assert checker.untold(one_of_two, strict=False) == ["second"]
    assert checker.untold(a_line, strict=False) == [] and checker.untold(a_line, strict=True) == ["first"]
    assert checker.untold(untold, strict=False) == ["anything"]


class Undocumented:
    def method(self, first): ...


def test_entries(checker):
    Undocumented.__doc__ = None
    found = list(checker.problems(["autopar.X", "autopar.mesh.X"], Undocumented, {"autopar.mesh.X"}))
    assert found == ["autopar.X has no docstring", "autopar.X.method: its docstring does not tell of anything"]
    assert "has no entry" in next(checker.problems(["autopar.y"], 1, set()))


def test_all_modules_with_names_are_public_or_named_here(checker):
    """A new package with an `__all__` is put into PUBLIC, or here, where those for contributors are."""
    inner = {"api", "cli", "cost", "explain", "ir", "lower", "partition", "planner", "sizing", "trace", "sharding"}
    folders = {init.parent.name for init in (ROOT / "autopar").glob("*/__init__.py")}
    public = {name.removeprefix("autopar.") for name in checker.PUBLIC} - {"autopar", "errors"}
    assert folders - public == inner


def test_names_of_a_module_without_all(checker):
    module = ModuleType("somewhere")
    exec("import re\ndef f(): ...\ndef _g(): ...", module.__dict__)
    assert checker.exported(module) == ["f"]
    assert "somewhere" not in sys.modules
