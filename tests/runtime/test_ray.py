"""Stages in processes of a Ray cluster give what plain jax gives, and end as they should."""

import os
import signal
import time

import jax
import numpy as np
import psutil
import pytest

from autopar.errors import ClusterError, OptionError, PlanError, StageError
from autopar.runtime import ray_runtime
from tests.runtime import toys

pytestmark = pytest.mark.usefixtures("ray_cluster")


def pids(runtime):
    return [hello.pid for hello in runtime._hellos]


def runs(pid):
    """Whether a process does; one may end between being found and being asked."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(numbers):
    return not any(runs(pid) for pid in numbers)


@pytest.fixture(scope="module")
def pair(ray_cluster):
    """Two stages of one device, 128 kB of batch: more than travels inside a call."""
    pipeline = toys.chain(toys.schedule(2, 4, seed=1), rows=512)
    with ray_runtime(pipeline, toys.jitted(pipeline)) as runtime:
        yield pipeline, runtime


def test_equals_plain_jax(pair):
    pipeline, runtime = pair
    arguments = toys.arguments(pipeline)
    weights, seen = toys.plain_steps(arguments, 3)
    runtime.load_state(arguments)
    dispatched = [runtime.step(arguments) for _ in seen]
    for results, expected in zip(dispatched, seen, strict=True):
        np.testing.assert_allclose([float(results[2]), float(results[3])], expected, rtol=1e-4)
    state = runtime.fetch_state()
    for s, weight in enumerate(weights):
        np.testing.assert_allclose(state[s], weight, rtol=1e-4, atol=1e-6)


def test_timeline_measures_every_task(pair):
    pipeline, runtime = pair
    arguments = toys.arguments(pipeline)
    runtime.load_state(arguments)
    results, spans = runtime.timeline(arguments)
    np.testing.assert_allclose(results[2], toys.plain(arguments)[1], rtol=1e-5)
    assert len(spans) == 2 * (3 + 2 * 4)
    assert all(-0.01 <= s.start_s <= s.end_s < 60 for s in spans)


def test_not_a_number_passes_unchanged(pair):
    pipeline, runtime = pair
    arguments = toys.arguments(pipeline)
    runtime.load_state(arguments)
    arguments[-2][0, 0] = np.nan
    results = runtime.step(arguments)
    assert np.isnan(results[2].get()) and results[3].shape == () and np.isnan(float(results[3]))


def test_wrong_arguments_are_refused_where_the_user_is(pair):
    pipeline, runtime = pair
    arguments = toys.arguments(pipeline)
    with pytest.raises(PlanError, match="argument 0 of toy"):
        runtime.load_state([arguments[0][:2], *arguments[1:]])
    runtime.load_state(arguments)
    with pytest.raises(PlanError, match="argument 3 of toy"):
        runtime.step([*arguments[:3], arguments[3][:5]])
    assert float(runtime.step(arguments)[2]) > 0


def test_two_hundred_steps_keep_memory_flat(pair):
    pipeline, runtime = pair
    arguments = toys.arguments(pipeline)
    runtime.load_state(arguments)

    def used():
        return sum(psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *pids(runtime)))

    for n in range(200):
        results = runtime.step(arguments)
        if n == 50:
            float(results[2])
            before = used()
    float(results[2])
    assert used() - before < 20e6  # the batches of 150 steps are 20 MB for each process that would keep them


@pytest.mark.parametrize(
    ("stages", "options", "devices", "hosts", "transfer"),
    [
        (2, {"seed": 3}, 2, [1, 2], "auto"),
        (4, {"workers": 2, "weight": True, "seed": 4}, 2, [1, 1], "object_store"),
    ],
)
def test_hosts_transfers_and_double_precision(stages, options, devices, hosts, transfer):
    with jax.enable_x64(True):
        pipeline = toys.chain(toys.schedule(stages, 2, **options), devices=devices, dtype="float64")
        arguments = toys.arguments(pipeline)
        weights, seen = toys.plain_steps(arguments, 2)
        with ray_runtime(pipeline, toys.jitted(pipeline), hosts=hosts, transfer=transfer) as runtime:
            runtime.load_state(arguments)
            for results, expected in zip([runtime.step(arguments) for _ in seen], seen, strict=True):
                found = [float(results[stages]), float(results[stages + 1])]
                np.testing.assert_allclose(found, expected, rtol=1e-12)
            state = runtime.fetch_state()
    for s, weight in enumerate(weights):
        np.testing.assert_allclose(state[s], weight, rtol=1e-12)


def test_a_killed_host_of_a_spanning_stage_is_named():
    pipeline = toys.chain(toys.schedule(2, 2), devices=2)
    arguments = toys.arguments(pipeline)
    with ray_runtime(pipeline, toys.jitted(pipeline), hosts=[1, 2]) as runtime:
        processes = pids(runtime)
        runtime.load_state(arguments)
        float(runtime.step(arguments)[2])
        os.kill(processes[2], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(StageError, match=f"stage 1 .*host 1 of 2.*process {processes[2]}.* is gone"):
            for _ in range(3):
                float(runtime.step(arguments)[2])
        assert time.monotonic() - start < 10
        assert gone(processes)


def plain(pipeline, first, last):
    """Programs without jax: ``first`` and ``last`` are the forwards of the two stages."""
    del pipeline

    def backward(w, x, seed, acc):
        return acc, x

    rest = {"prepare": lambda: (np.zeros((8, 8), np.float32),), "backward": backward}

    def updates(first):
        return {
            "update.0": (lambda acc, *losses: (np.float32(0), *((np.float32(1),) if losses else ()))),
            "update.1": (lambda w, acc, *squares: (w, np.float32(2)) if first else (w,)),
        }

    left = {"forward": first, **rest, "backward": lambda w, x, seed, acc: (acc,), **updates(True)}
    return [left, {"forward": last, **rest, **updates(False)}]


def test_a_failing_program_is_one_clear_error():
    pipeline = toys.chain(toys.schedule(2, 4))
    arguments = toys.arguments(pipeline)
    calls = []

    def unlucky(w, x, labels):
        calls.append(1)
        if len(calls) == 7:
            raise ValueError("out of luck")
        return (np.float32(0),)

    with ray_runtime(pipeline, plain(pipeline, lambda w, x: (x,), unlucky)) as runtime:
        processes = pids(runtime)
        runtime.load_state(arguments)
        first, second = runtime.step(arguments), runtime.step(arguments)
        assert float(first[2]) == 1
        start = time.monotonic()
        with pytest.raises(StageError) as caught:
            float(second[2])
        assert time.monotonic() - start < 10
        message = str(caught.value)
        assert "stage 1 (worker 1, on " in message and f"process {processes[1]}" in message
        assert "step 1" in message and "run forward of stage 1 of micro-batch 2" in message
        assert 'raise ValueError("out of luck")' in message  # the worker's own traceback
        assert gone(processes)
        with pytest.raises(StageError, match="out of luck"):
            runtime.step(arguments)


def test_a_worker_killed_within_a_step_is_named():
    pipeline = toys.chain(toys.schedule(2, 4))
    arguments = toys.arguments(pipeline)

    def slow(w, x, labels):
        time.sleep(1)
        return (np.float32(0),)

    with ray_runtime(pipeline, plain(pipeline, lambda w, x: (x,), slow)) as runtime:
        processes = pids(runtime)
        runtime.load_state(arguments)
        results = runtime.step(arguments)
        time.sleep(0.5)
        os.kill(processes[1], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(StageError, match=f"stage 1 .*process {processes[1]}.* is gone: .*in step 0"):
            float(results[2])
        assert time.monotonic() - start < 10
        assert gone(processes)


def test_a_cluster_that_is_too_small_is_refused_at_once():
    pipeline = toys.chain(toys.schedule(14, 2))
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"14 actors with 14 CPU in all, and the Ray cluster's nodes have 12 CPU"):
        ray_runtime(pipeline, toys.jitted(pipeline))
    assert time.monotonic() - start < 20  # nearly all of it is jax.export


def test_a_type_of_hosts_that_ray_has_not_is_refused():
    pipeline = toys.chain(toys.schedule(2, 2))
    with pytest.raises(ClusterError, match=r"2 actors with 2 CPU \(H100 and V100\) in all, and .* have 12 CPU\."):
        ray_runtime(pipeline, toys.jitted(pipeline), accelerators=["V100", "H100"])


def test_options_are_checked():
    pipeline = toys.chain(toys.schedule(2, 2))
    with pytest.raises(OptionError, match="Known: auto, object_store, socket"):
        ray_runtime(pipeline, [], transfer="pigeon")
    with pytest.raises(PlanError, match="names 1 workers; the schedule has 2"):
        ray_runtime(pipeline, [], hosts=[1])
    with pytest.raises(PlanError, match="1 devices, which 2 hosts cannot share"):
        ray_runtime(pipeline, [], hosts=[1, 2])
