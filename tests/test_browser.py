"""Where there is no browser, tests that need one are skipped, and fail where one is required."""

import pytest

from tests import browser


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.delenv("AUTOPAR_CHROMIUM", raising=False)


def test_without_a_browser_tests_are_skipped(nothing_installed, monkeypatch):
    monkeypatch.delenv("AUTOPAR_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="AUTOPAR_CHROMIUM names none"):
        browser.need()


def test_where_one_is_required_they_fail(nothing_installed, monkeypatch):
    monkeypatch.setenv("AUTOPAR_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        browser.need()


def test_the_browser_that_is_named_is_taken(monkeypatch, tmp_path):
    found = tmp_path / "my-browser"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    monkeypatch.setenv("AUTOPAR_CHROMIUM", str(found))
    assert browser.need() == str(found)
