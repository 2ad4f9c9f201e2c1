"""Which ops run before, in and after the loop; what is refused, and in which words."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from autopar.errors import CouplingError, PlanError
from autopar.partition import AFTER, Timing, examples_of, time_step
from autopar.sharding.layout import MAX, SUM
from autopar.trace import trace

B = 8


def timed(loss, batch, microbatches=4, **more):
    """The timing of gradient descent on ``loss(w, batch)``, with a weight of 4 by 4."""

    def step(w, batch):
        value, gradient = jax.value_and_grad(loss)(w, batch)
        return w - 0.1 * gradient, value

    return time_step(trace(step, (jnp.ones((4, 4)), batch)).step, microbatches, **more)


def x(rows=B):
    return jnp.ones((rows, 4))


def names(ops):
    return [op.primitive for op in ops]


def test_products_run_in_the_loop_and_the_update_after():
    timing = timed(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), x())
    assert isinstance(timing, Timing) and timing.batch == {1: 0}
    assert names(timing.loop).count("dot_general") == 2 and "dot_general" not in names((*timing.before, *timing.after))
    assert names(timing.after)[-2:] == ["mul", "sub"]
    assert {timing.places[v] for v in timing.summed} == {SUM} and len(timing.summed) == 2
    assert not timing.stacked and not timing.local


def test_what_does_not_depend_on_the_batch_runs_once_before():
    timing = timed(lambda w, x: jnp.mean(x @ jnp.linalg.matrix_power(w, 3)), x())
    assert names(timing.before).count("dot_general") >= 2


def test_a_sum_of_the_data_alone_is_computed_before():
    timing = timed(lambda w, b: jnp.sum(jnp.tanh(b["x"] @ w) * b["m"]) / jnp.sum(b["m"]), {"x": x(), "m": x()})
    assert "reduce_sum" in names(timing.before) and "dot_general" not in names(timing.before)


def test_nothing_is_made_whole_that_is_read_in_parts():
    def loss(w, x):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        return jnp.mean(jnp.where(keep, x @ w, 0.0) ** 2)

    timing = timed(loss, x())
    assert all(timing.places[v] >= 0 for op in timing.loop if op.primitive.startswith("threefry") for v in op.results)
    assert not any(name.startswith("threefry") for name in names(timing.before))


def test_maxima_and_what_comes_of_them():
    def step(w, x):
        value, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
        most = jnp.max(x @ w)
        return w - gradient, value, most, 2 * most

    traced = trace(step, (jnp.ones((4, 4)), x()))
    timing = time_step(traced.step, 4)
    most, twice = traced.step.graph.outputs[2:]
    assert (timing.places[most], timing.places[twice]) == (MAX, AFTER)
    assert most in timing.summed


def couples(h):
    return h - h.mean(0)


def contrast(w, x):
    return jnp.mean(jax.nn.logsumexp((x @ w) @ (x @ w).T, axis=1))


def rows(w, x):
    return jnp.mean(lax.scan(lambda c, row: (jnp.tanh(c * row), c), w[0], x)[1])


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda w, x: jnp.mean(couples(x @ w) ** 2), r"sub at .*couples.* reduce_sum at .*couples"),
        (contrast, r"dot_general at test_timing.py.*joins examples"),
        (lambda w, x: jnp.mean(jnp.cumsum(x @ w, axis=0) ** 2), r"cumsum at test_timing.py.*joins examples"),
        (
            lambda w, x: jnp.mean(lax.scan(lambda h, _: (couples(h @ w), None), x, None, 2)[0]),
            r"sub at .*couples.* reduce_sum at .*couples",
        ),
        (rows, r"one by one"),
    ],
)
@pytest.mark.parametrize("microbatches", [2, 8])
def test_refused(loss, words, microbatches):
    with pytest.raises(CouplingError, match=words) as caught:
        timed(loss, x(), microbatches)
    assert f"{microbatches} micro-batches" in str(caught.value)


def test_per_microbatch_is_offered_only_where_it_helps():
    helps = lambda w, x: jnp.mean(couples(x @ w) ** 2)  # noqa: E731
    with pytest.raises(CouplingError, match="per_microbatch=True"):
        timed(helps, x())
    assert timed(helps, x(), per_microbatch=True).local
    for loss in (rows, contrast):
        with pytest.raises(CouplingError) as caught:
            timed(loss, x(), per_microbatch=True)
        assert "per_microbatch" not in str(caught.value)


def test_estimates_are_made_where_examples_are_added_up():
    def layer(h, w):
        return (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) @ w, None

    ws = jnp.ones((3, 4, 4))

    def step(ws, x):
        value, gradient = jax.value_and_grad(lambda ws: jnp.mean(lax.scan(layer, x, ws)[0] ** 2))(ws)
        return ws - gradient, value

    traced = trace(step, (ws, x()))
    timing = time_step(traced.step, 4, per_microbatch=True)
    made = {v: op.primitive for op in traced.step.graph.walk() for v in op.results}
    assert timing.local and {made[v] for v in timing.local} == {"reduce_sum"}


def test_the_batch_is_what_most_arrays_have_in_front():
    args = jnp.ones((4, 4)), {"a": x(), "b": x(), "table": jnp.ones((12, 4))}

    def step(w, b):
        return w - jax.grad(lambda w: jnp.mean((b["a"] @ w - b["b"]) ** 2) + jnp.sum(b["table"] @ w))(w)

    traced = trace(step, args)
    assert examples_of(traced.step) == B
    assert sorted(time_step(traced.step, 4).batch) == [1, 2]
    with pytest.raises(PlanError, match=r"a batch of 8 .*\['a'\].*\['b'\]\) cannot be cut into 3 .*: 1, 2, 4, 8; or"):
        time_step(traced.step, 3)


def test_no_batch():
    traced = trace(lambda w: w * 0.9, (jnp.ones(3),))
    assert examples_of(traced.step) == 0
    with pytest.raises(PlanError, match="no argument that holds data"):
        time_step(traced.step, 2)
