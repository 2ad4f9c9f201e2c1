"""What XLA compiled is what was planned, and a plan that lies about it is found out."""

import dataclasses

import pytest

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.errors import MemoryWarning
from autopar.lower import audit, memory_shortfall
from autopar.models import get
from autopar.trace import trace

CASES = (("mlp", "8", "fsdp"), ("mlp", "2x4", "megatron"), ("gpt", "2x4", "data"), ("gpt", "2x4", "fsdp"))


def compiled(model, mesh, strategy):
    recipe = get(model)
    traced = trace(recipe.step, recipe.abstract(), {}, donate_argnums=(0,))
    options = Options(mesh=tuple(map(int, mesh.split("x"))), strategy=strategy, mip_gap=0.02)
    return Executable(traced, plan_traced(traced, Cluster.parse("cpu:8"), options))


@pytest.fixture(scope="module")
def small():
    return compiled("mlp", "8", "data")


@pytest.mark.parametrize(("model", "mesh", "strategy"), CASES)
def test_collectives_and_memory_are_as_planned(model, mesh, strategy):
    found = compiled(model, mesh, strategy).audit
    assert found.agrees, [row for row in found.rows if not row.agrees]
    assert sum(row.planned_count for row in found.rows) > 0
    assert 0.9 <= found.peak_ratio <= 1.3


def test_one_collective_too_many_is_seen(small):
    records = small.plan.collectives
    more = (dataclasses.replace(records[0], count=records[0].count + 1), *records[1:])
    found = audit(dataclasses.replace(small.plan, collectives=more), small.programs["step"])
    assert [row.kind for row in found.rows if not row.agrees] == [records[0].kind]


def test_wrong_bytes_are_seen(small):
    records = small.plan.collectives
    largest = max(records, key=lambda record: record.bytes * record.count)
    halved = tuple(dataclasses.replace(r, bytes=r.bytes // 2) if r is largest else r for r in records)
    found = audit(dataclasses.replace(small.plan, collectives=halved), small.programs["step"])
    (row,) = [row for row in found.rows if not row.agrees]
    assert row.planned_count == row.compiled_count
    assert row.planned_bytes < row.compiled_bytes


def test_a_collective_of_a_kind_that_was_never_planned_is_seen(small):
    found = audit(dataclasses.replace(small.plan, collectives=()), small.programs["step"])
    assert not found.agrees
    assert all(row.planned_count == 0 for row in found.rows)


def test_the_peak_is_held_against_the_plan(small):
    assert small.audit.planned_peak_bytes == small.plan.peak_bytes
    low = audit(dataclasses.replace(small.plan, peak_bytes=small.plan.peak_bytes // 2), small.programs["step"])
    assert low.peak_ratio == pytest.approx(small.audit.peak_ratio / 2, rel=1e-3)


def test_a_prediction_that_is_too_small_is_said(small):
    assert memory_shortfall(small.plan, small.programs["step"]) is None
    lying = dataclasses.replace(small.plan, peak_bytes=small.plan.peak_bytes // 2)
    said = memory_shortfall(lying, small.programs["step"])
    assert said is not None
    assert "more than the 112 KiB that were predicted" in said
    assert "memory_bytes" in said
    with pytest.warns(MemoryWarning, match="needs 225 KiB on each device") as seen:
        Executable(small._traced, lying)
    assert seen[0].filename == __file__
