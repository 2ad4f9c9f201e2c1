"""Where the browser is. Without one, tests that need it are skipped; with AUTOPAR_BROWSER=required they fail."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The path of Chromium: $AUTOPAR_CHROMIUM, or the first of the usual names; None if there is none."""
    named = os.environ.get("AUTOPAR_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def need() -> str:
    """The path of Chromium; skips, or fails, the test that asks where there is none."""
    found = find()
    if found is None:
        why = f"no browser: none of {', '.join(NAMES)} is installed, and AUTOPAR_CHROMIUM names none"
        if os.environ.get("AUTOPAR_BROWSER") == "required":
            pytest.fail(why)
        pytest.skip(why)
    return found
