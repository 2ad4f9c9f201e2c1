"""Goldens: text that people read, kept beside the tests. Refresh with ``pytest tests/report --update-goldens``."""

import pytest


@pytest.fixture
def golden(request):
    def check(path, text):
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing; make it with: pytest tests/report --update-goldens"
        assert text == path.read_text(), "the page changed; look at it, then: pytest tests/report --update-goldens"

    return check
