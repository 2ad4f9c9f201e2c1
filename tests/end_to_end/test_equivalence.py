"""A sample of `benchmarks/equivalence.py`: after 3 steps, every leaf of the state and every metric as plain jax's.

The whole of it (every model, mesh, strategy and backend) is the benchmark's.
"""

import functools

import jax
import numpy as np
import pytest

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.models import get
from autopar.trace import trace
from benchmarks._steps import STEPS, TrainingStep, reference, relative_errors, run

CLUSTER = Cluster.parse("cpu:8")

# Every model with auto; every strategy and backend on three models or more; every mesh.
SAMPLE = """
mlp            2x2x2  auto      shard_map
mlp            2x4    data      gspmd
mlp            8      fsdp      shard_map
mlp            2x2x2  megatron  gspmd
mlp            8      expert    shard_map
gpt            8      auto      shard_map
gpt            2x4    fsdp      gspmd
gpt            2x4    megatron  shard_map
bert           8      auto      gspmd
bert           2x4    data      shard_map
moe            8      auto      shard_map
moe            2x4    expert    shard_map
moe            2x4    expert    gspmd
convnet        2x4    auto      shard_map
convnet        2x4    data      gspmd
conformer      8      auto      shard_map
conformer      8      fsdp      gspmd
gpt-scan       2x4    auto      shard_map
gpt-scan       8      megatron  gspmd
gpt-plain      8      auto      gspmd
gpt-linen      8      auto      shard_map
gpt-nnx        8      auto      shard_map
gpt-equinox    8      auto      shard_map
mlp-adafactor  2x4    auto      shard_map
gpt-adafactor  8      fsdp      shard_map
mlp-lossscale  2x4    auto      shard_map
seq2seq        2x4    megatron  shard_map
seq2seq-frozen 8      fsdp      shard_map
"""


@pytest.fixture(autouse=True)
def quick_compiles():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.lru_cache(maxsize=1)
def prepared(model):
    """The step, its trace, and what plain jax computes."""
    training = STEPS[model]()
    traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
    return training, traced, reference(training)


@pytest.mark.parametrize("case", SAMPLE.strip().splitlines(), ids=lambda case: "-".join(case.split()))
def test_same_numbers(case):
    model, mesh, strategy, backend = case.split()
    training, traced, expected = prepared(model)
    options = Options(mesh=tuple(map(int, mesh.split("x"))), strategy=strategy, mip_gap=0.05)
    plan = plan_traced(traced, CLUSTER, options)
    assert not plan.warnings
    executable = Executable(traced, plan, backend=backend)
    errors = relative_errors(run(executable, training), expected)
    assert {path: error for path, error in errors.items() if not error < 1e-9} == {}
    assert executable.audit.memory.alias_bytes > 0  # the state is updated in place


def test_mixed_precision_rounds_alike():
    recipe = get("gpt", dtype="bfloat16", hidden=32, layers=1, sequence=16, vocab=64)
    training = TrainingStep(recipe.step, recipe.init(jax.random.key(0)), recipe.batch)
    traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
    executable = Executable(traced, plan_traced(traced, CLUSTER, Options(mesh=(2, 4), strategy="megatron")))
    (state, metrics), (_, expected) = run(executable, training), reference(training)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-3) for a, b in zip(metrics, expected, strict=True))
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


def test_the_comparison_sees_differences():
    expected = {"w": np.array([2.0, -4.0]), "n": np.int32(3), "zero": np.zeros(2)}
    assert relative_errors(expected, expected) == {"['n']": 0.0, "['w']": 0.0, "['zero']": 0.0}
    for name, value, error in (
        ("w", np.array([2.0, -4.0 + 4e-9]), pytest.approx(1e-9)),  # relative to the largest of the leaf
        ("w", np.array([np.nan, -4.0]), np.inf),
        ("w", np.float32([2, -4]), np.inf),
        ("w", np.ones((1, 2)), np.inf),
        ("n", np.int32(4), np.inf),
        ("zero", np.array([0.0, 1e-20]), pytest.approx(1e10)),
    ):
        assert relative_errors(expected | {name: value}, expected)[f"['{name}']"] == error
    with pytest.raises(ValueError, match="structure"):
        relative_errors({"w": 1}, expected)
