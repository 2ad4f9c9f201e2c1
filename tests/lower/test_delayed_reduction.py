"""Accumulators stay partial sums over devices: gradients are reduced once per step, not once per micro-batch."""

import jax
import numpy as np
import pytest

import autopar
from autopar.lower.hlo import hlo_collectives
from tests.bad_input.steps import STATE, X, Y, step


@pytest.mark.parametrize(
    "strategy, expected",
    [
        ("data", [("all-reduce", 8), ("all-reduce", 2048), ("all-reduce", 4096)]),
        (
            "fsdp",
            [("all-gather", 2048), ("all-gather", 4096), ("all-reduce", 8), ("reduce-scatter",), ("reduce-scatter",)],
        ),
    ],
)
def test_gradients_are_reduced_once(strategy, expected):
    options = autopar.Options(mesh=(8,), strategy=strategy, microbatches=4)
    spread = autopar.compile(step, STATE, X, Y, cluster="cpu:8", options=options)
    found = list(hlo_collectives(spread.programs["step"].as_text()))
    assert sorted((c.kind, c.nbytes)[: 1 if c.kind == "reduce-scatter" else 2] for c in found) == expected
    assert all(c.times == 1 for c in found)
    assert all(c.count == 1 for c in spread.plan.collectives)
    assert spread.audit.agrees
    results, plain = spread(STATE, X, Y), jax.jit(step)(STATE, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), results, plain)


def test_the_batch_is_divided_over_devices_in_each_micro_batch():
    def products(count):
        options = autopar.Options(mesh=(8,), strategy="data", microbatches=count)
        return autopar.plan(step, STATE, X, Y, cluster="cpu:8", options=options)

    assert (
        str(products(4)).splitlines()[1] == "4 micro-batches, batch sliced inside the step, gradients summed over 8 (x)"
    )
    assert sorted(c.bytes for c in products(4).collectives) == sorted(c.bytes for c in products(1).collectives)
