"""Measured steps against their simulation from mean durations."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from autopar.runtime import Span
from autopar.schedule import Kind, make_schedule
from autopar.simulate import mean_task_s, replay, simulate_schedule

SECONDS = {("forward", 0): 1.0, ("forward", 1): 2.0, ("backward", 0): 3.0, ("backward", 1): 2.5}
KINDS = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward"}


def ran(schedule, seconds, more=()):
    """Spans of a step in which every program took so long."""
    line = simulate_schedule(schedule, lambda t: seconds[KINDS[t.kind], t.stage], lambda a, b: 0.0)
    return [
        Span(e.worker, e.task.stage, KINDS[e.task.kind], e.task.microbatch, e.start_s, e.end_s) for e in line.events
    ]


@pytest.mark.parametrize("name", ["1f1b", "gpipe"])
def test_a_step_of_steady_programs_is_found_again(name):
    schedule = make_schedule(name, 2, 6)
    spans = [*ran(schedule, SECONDS), Span(0, 0, "update.0", None, 100.0, 101.0)]
    assert replay(schedule, spans).step_s == pytest.approx(max(s.end_s for s in spans[:-1]))
    assert mean_task_s(spans)[Kind.BACKWARD, 1] == pytest.approx(2.5)
    assert replay(schedule, spans, message_s=1.0).step_s > replay(schedule, spans).step_s


def test_spans_of_part_of_a_step():
    schedule = make_schedule("1f1b", 2, 2)
    spans = [s for s in ran(schedule, SECONDS) if s.stage == 0]
    with pytest.raises(autopar.OptionError, match="no run of task F of stage 1, which schedule '1f1b' has"):
        replay(schedule, spans)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_the_order_explains_how_long_a_measured_step_takes(schedule):
    """Programs of some milliseconds on this machine; the median of a few steps, as others work here, too."""
    width, layers, examples = 256, 4, 1024
    rng = np.random.default_rng(0)
    state = [rng.standard_normal((width, width)) / width**0.5 for _ in range(layers)]
    x = rng.standard_normal((examples, width))

    def step(state, x):
        def loss(state):
            h = x
            for w in state:
                h = jnp.tanh(h @ w)
            return jnp.mean((h - x) ** 2)

        return [w - 0.1 * g for w, g in zip(state, jax.grad(loss)(state), strict=True)]

    options = autopar.Options(microbatches=4, stages=2, schedule=schedule)
    cluster = autopar.Cluster.uniform(2, 1e8, 1e9, 1e-7, 1e9)
    run = autopar.compile(step, state, x, cluster=cluster, options=options, donate_argnums=0)
    order = run.pipeline.schedule
    ratios = []
    for _ in range(7):
        state = run.timed(state, x)
        tasks = [s for s in run.timeline if s.microbatch is not None]
        measured_s = max(s.end_s for s in tasks) - min(s.start_s for s in tasks)
        ratios.append(replay(order, run.timeline).step_s / measured_s)
        serial_s = sum(s.end_s - s.start_s for s in tasks)
    assert 0.85 < statistics.median(ratios) < 1.1
    assert replay(order, run.timeline).step_s < 0.95 * serial_s  # stages do overlap
