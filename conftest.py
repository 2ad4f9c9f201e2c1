"""Tests and doctests run on eight virtual CPU devices, also where there is a GPU. Set before jax starts.

Most of the time of the tests was LLVM's, so it is asked not to optimise; what XLA makes of a program before is as ever.
"""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    )
)


def pytest_addoption(parser):
    """Options of this repository's tests."""
    parser.addoption("--update-goldens", action="store_true", help="rewrite the golden texts of tests/report")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Processes that share the tests take whole files, whose fixtures and caches are made once; one has all of Ray."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            file = item.path.relative_to(Path(__file__).parent).as_posix()
            with_ray = file.startswith("tests/runtime/") or item.get_closest_marker("ray")
            item.add_marker(pytest.mark.xdist_group("runtime" if with_ray else file))
