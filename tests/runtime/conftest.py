"""One Ray cluster for all tests of the runtime."""

import pytest


@pytest.fixture(scope="package")
def ray_cluster():
    """A Ray with twelve CPUs, on loopback."""
    import ray  # noqa: PLC0415  (tests that need no Ray do not pay for it)

    from autopar.runtime.ray import cluster  # noqa: PLC0415

    assert cluster.start(12)
    yield
    ray.shutdown()
