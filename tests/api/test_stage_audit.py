"""What XLA compiled for each stage is what was planned for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from autopar.report import audit_text
from tests.api.pipelines import STATE, X, Y, compiled, planned, step


@pytest.fixture(scope="module")
def pair():
    return compiled()


def test_programs_are_compiled_at_once_and_named_by_stage(pair):
    assert {"stage 0 forward", "stage 0 backward", "stage 1 forward", "stage 1 backward"} <= set(pair.programs)
    assert all(isinstance(program, jax.stages.Compiled) for program in pair.programs.values())


@pytest.mark.parametrize("asked", [{}, {"schedule": "zb-h1"}, {"cluster": "cpu:4"}], ids=str)
def test_collectives_are_as_planned_and_memory_is_not_underestimated(asked):
    found = compiled(**asked)
    assert found.audit.agrees, [row for stage in found.audit.stages for row in stage.rows if not row.agrees]
    assert all(stage.peak_ratio >= 0.9 for stage in found.audit.stages)
    (state, metrics), (expected, values) = found(STATE, X, Y), jax.jit(step)(STATE, X, Y)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), (state, metrics), (expected, values)
    )


def test_there_is_something_to_agree_on(pair):
    rows = [row for stage in pair.audit.stages for row in stage.rows]
    assert sum(row.compiled_count for row in rows) > 0


def test_new_state_lies_where_the_old_lay(pair):
    for stage in pair.audit.stages:
        assert max(memory.alias_bytes for memory in stage.memory.values()) > 1000  # half of a layer of 16 x 16 float64


def test_the_audit_in_words(pair):
    text = audit_text(pair.audit)
    assert "The compiled pipeline runs as planned." in text
    assert "stage 0: predicted" in text and "stage 1: predicted" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_that_lies_is_found_out():
    plan = planned()
    first = plan.stages[0]
    record = first.plan.collectives[0]
    lying = dataclasses.replace(
        first.plan, collectives=(dataclasses.replace(record, count=record.count + 1), *first.plan.collectives[1:])
    )
    plan = dataclasses.replace(plan, stages=(dataclasses.replace(first, plan=lying), *plan.stages[1:]))
    audit = autopar.compile(step, STATE, X, Y, plan=plan).audit
    assert not audit.stages[0].agrees and audit.stages[1].agrees and not audit.agrees


def test_a_sum_is_not_taken_for_the_zeros_that_it_began_with():
    """The update reads zeros of a gradient's shape, as the gradient of a table does; sums begin with such zeros."""
    table = {"w": np.ones((16, 16)), "v": np.ones((16, 16)), "zeros": np.zeros((16, 16))}

    def lookup(state, x, y):
        def loss(p):
            return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)

        value, grads = jax.value_and_grad(loss)(state)
        blank = jnp.zeros((16, 16)).at[3].add(1.0)
        grads = jax.tree.map(lambda g: g + jnp.maximum(jnp.zeros((16, 16)), blank), grads)
        return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value

    options = autopar.Options(microbatches=2, max_stages=2)
    found = autopar.compile(lookup, table, X, Y, cluster="cpu:2", options=options)(table, X, Y)
    expected = jax.jit(lookup)(table, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)
