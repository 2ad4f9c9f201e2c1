"""Alpa's figure on a toy: planning both levels is never slower than planning one, nor than equal stages by hand.

`benchmarks/alpa_figure.py` does the same for GPT of 350M to 39B parameters.
"""

import pytest

from autopar import Cluster, Options
from autopar.lower import StagedStep
from autopar.mesh import Device, Level
from autopar.models import get
from autopar.planner import plan_stages
from autopar.trace import trace

# Two hosts of two devices; within a host links keep up with the devices, between hosts they do not.
LEVELS = (Level("device", 2, 1e-6, 1e9), Level("host", 2, 1e-5, 1e7))
CLUSTER = Cluster("toy:2x2", Device("toy", {"float32": 1e9}, 1e10, 2**30, source="given"), LEVELS)
MANUAL = {  # stages, data, tensor -> options
    (1, 2, 2): Options(stages=1, mesh=(2, 2), strategy="megatron"),
    (2, 1, 2): Options(stages=2, mesh=(2,), strategy="megatron"),
    (2, 2, 1): Options(stages=2, mesh=(2,), strategy="data"),
}


@pytest.fixture(scope="module")
def step_s():
    """Predicted seconds of the toy by its options."""
    recipe = get("gpt", layers=1, hidden=64, heads=4, sequence=16, vocab=64, batch_size=16, dropout=0.0)
    staged = StagedStep(trace(recipe.step, recipe.abstract(), donate_argnums=0), 8)
    return lambda options: plan_stages(staged, CLUSTER, options).step_s


def test_both_levels_are_at_least_as_fast_as_one_and_as_by_hand(step_s):
    auto = step_s(Options(max_stages=4))
    assert auto < step_s(Options(max_stages=4, mesh=(1,)))  # inter-op only
    assert auto < step_s(Options(stages=1))  # intra-op only
    manual = {degrees: step_s(options) for degrees, options in MANUAL.items()}
    assert auto <= min(manual.values()) < max(manual.values())
