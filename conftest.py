"""Tests and doctests run on eight virtual CPU devices, also where there is a GPU. Set before jax starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


def pytest_addoption(parser):
    """Options of this repository's tests."""
    parser.addoption("--update-goldens", action="store_true", help="rewrite the golden texts of tests/report")
