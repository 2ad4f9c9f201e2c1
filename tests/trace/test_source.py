"""Lines, scopes, stacks and phases."""

import re
from itertools import groupby, pairwise

import jax
import jax.numpy as jnp
import pytest

from autopar.trace import trace
from tests.trace import steps

X = jnp.ones((8, 4))
W = jnp.ones((4, 4))


def _ops(fun, *args):
    return trace(fun, args).step.graph.ops


def _dots(fun, *args):
    return [op.where for op in _ops(fun, *args) if op.primitive == "dot_general"]


def _layer(w, x):
    q = x @ w
    k = q @ w
    return jnp.tanh(q + k)


def test_layers_made_by_a_loop_share_stacks():
    def step(w, x):
        for i in range(3):
            with jax.named_scope(f"layer_{i}"):
                x = _layer(w, x)
        return x

    dots = _dots(step, W, X)
    stacks = [d.stack for d in dots]
    assert stacks[0] == stacks[2] == stacks[4] and stacks[1] == stacks[3] == stacks[5]
    assert stacks[0] != stacks[1]
    assert [d.scope for d in dots[::2]] == ["layer_0", "layer_1", "layer_2"]
    assert all(re.match(r"test_source\.py:\d+ \(_layer\)$", d.line) for d in dots)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "plain"])
def test_helpers_called_from_different_places_differ(wrap):
    dense = wrap(lambda w, x: jnp.where(x > 0, x @ w, 0.0))

    def step(w, x):
        def loss(w):
            y = x
            for _ in range(2):
                q = dense(w, y)
                k, v = dense(w, q), dense(w, 2 * q)
                y = q + k * v
            return y.sum()

        return jax.value_and_grad(loss)(w)

    forward = [d for d in _dots(step, W, X) if d.phase == "forward"]
    stacks = [d.stack for d in forward]
    assert len(stacks) == 6 and len(set(stacks)) == 3 and stacks[:3] == stacks[3:]
    backward = [d.stack for d in _dots(step, W, X) if d.phase == "backward"]
    assert set(backward) == set(stacks)
    assert all("<lambda>" in d.line for d in forward)


def test_jax_functions_cached_by_an_earlier_caller_stand_at_this_line():
    def first(x):
        return jnp.where(x > 0, x, 0.0)

    def second(x):
        return jnp.where(x > 0, x, 0.0)

    assert {op.where.line.partition(" ")[2] for op in _ops(first, X)} == {"(first)"}
    assert {op.where.line.partition(" ")[2] for op in _ops(second, X)} == {"(second)"}


def test_transformations_are_no_scopes():
    def step(w, x):
        @jax.checkpoint
        def block(w, x):
            with jax.named_scope("block"):
                return jnp.sin(x @ w)

        def loss(w):
            with jax.named_scope("outer"):
                return jax.vmap(lambda v: block(w, v))(x).sum()

        return jax.grad(loss)(w)

    scopes = {op.where.scope for op in _ops(step, W, X)}
    assert scopes <= {"", "outer", "outer/block", "block"}
    assert "outer/block" in scopes


@pytest.mark.parametrize(
    "case", [steps.mlp_adam, steps.linen_dropout, steps.nnx_objects, steps.equinox_checkpoint, steps.scan_layers_remat]
)
def test_three_phases_in_a_row(case):
    fun, args = case()
    ops = trace(fun, args).step.graph.ops
    order = [phase for phase, _ in groupby(op.where.phase for op in ops)]
    assert order == ["forward", "backward", "update"]
    rank = {"forward": 0, "backward": 1, "update": 2}
    made = {v: rank[op.where.phase] for op in ops for v in op.results}
    assert all(made.get(v, 0) <= rank[op.where.phase] for op in ops for v in op.operands)
    for op in ops:
        assert all(inner.where.phase == op.where.phase for region in op.regions for inner in region.walk())


def test_preprocessing_is_forward_and_metrics_are_update():
    def step(w, x):
        x = x.astype(jnp.float32).astype(x.dtype) / 3.0  # no gradient flows here
        grads = jax.grad(lambda w: jnp.sin(x @ w).sum())(w)
        return w - grads, (grads**2).sum()

    ops = _ops(step, W, X)
    assert {op.where.phase for op in ops[:3]} == {"forward"}
    assert [op.where.phase for op in ops[-3:]] == ["update"] * 3


def test_a_gradient_inside_the_loss_is_forward():
    def step(w, x):
        def penalty(w):
            return (jax.grad(lambda v: jnp.sin(v @ w).sum())(x) ** 2).sum()

        return w - jax.grad(penalty)(w)

    phases = [op.where.phase for op in _ops(step, W, X)]
    assert [p for p, _ in groupby(phases)] == ["forward", "backward", "update"]


def test_inference_is_all_forward():
    assert {op.where.phase for op in _ops(lambda w, x: jnp.tanh(x @ w), W, X)} == {"forward"}


def test_recomputation_is_kept_apart():
    def step(w, x, prevent_cse):
        block = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w)), prevent_cse=prevent_cse)
        return jax.grad(lambda w: block(w, block(w, x)).sum())(w)

    def barriers(prevent_cse):
        return [op for op in _ops(lambda w, x: step(w, x, prevent_cse), W, X) if op.primitive == "optimization_barrier"]

    assert barriers(False) == []
    assert {op.where.phase for op in barriers(True)} == {"backward"}
    compiled = jax.jit(lambda w, x: step(w, x, True)).lower(W, X).as_text()
    wrapped = compiled.count("optimization_barrier")
    groups = 1 + sum(b.id - a.id != 1 for a, b in pairwise(barriers(True)))
    assert groups == wrapped
