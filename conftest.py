"""Tests and doctests run on eight virtual CPU devices, also where there is a GPU. Set before jax starts.

Most of the time of the tests was LLVM's, so it is asked not to optimise; what XLA makes of a program before is as ever.
"""

import os

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
