"""One Ray cluster for all tests of the runtime."""

import pytest


@pytest.fixture(scope="package")
def ray_cluster():
    """A Ray with twelve CPUs, on loopback."""
    from autopar.runtime.ray import session  # noqa: PLC0415  (tests that need no Ray do not pay for it)

    leave = session.enter(cpus=12)
    yield
    leave()
