"""Files are written whole, and others may read them as they may read any file of the user."""

import os

import pytest

from autopar.errors import PlanError
from autopar.files import write_text


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_has_the_mode_of_any_new_file(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "plan.json", "new", PlanError, "the plan")
    finally:
        os.umask(before)
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == mode


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    old = tmp_path / "plan.json"
    old.write_text("old")
    old.chmod(0o640)
    write_text(old, "new", PlanError, "the plan")
    assert old.read_text() == "new" and old.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [old]
