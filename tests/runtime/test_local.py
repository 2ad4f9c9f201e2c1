"""All stages in one process give what plain jax gives."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autopar.errors import PlanError, StageError
from autopar.runtime.arrays import stage_meshes
from autopar.runtime.handover import feeding, handover
from autopar.runtime.local import LocalRuntime
from tests.runtime import toys

pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


def local(pipeline, programs=None):
    meshes = stage_meshes(pipeline, jax.devices())
    return LocalRuntime(pipeline, programs or toys.jitted(pipeline, meshes), meshes)


@pytest.mark.parametrize(
    ("stages", "options", "devices"),
    [
        (1, {}, 1),
        (2, {}, 1),
        (3, {"seed": 1}, 2),
        (2, {"weight": True, "seed": 2}, 2),
        (4, {"workers": 2, "seed": 3}, 2),
        (4, {"workers": 2, "weight": True}, 1),
    ],
)
def test_equals_plain_jax(stages, options, devices):
    pipeline = toys.chain(toys.schedule(stages, 4, **options), devices=devices)
    arguments = toys.arguments(pipeline)
    weights, seen = toys.plain_steps(arguments, 3)
    runtime = local(pipeline)
    runtime.load_state(arguments)
    for loss, norm in seen:
        results = runtime.step(arguments)
        np.testing.assert_allclose([results[stages], results[stages + 1]], [loss, norm], rtol=1e-5)
    state = runtime.fetch_state()
    for s, weight in enumerate(weights):
        np.testing.assert_allclose(state[s], weight, rtol=1e-4, atol=1e-6)
    runtime.close()


def test_timeline_measures_every_task_and_changes_nothing():
    pipeline = toys.chain(toys.schedule(3, 4))
    arguments = toys.arguments(pipeline)
    _, seen = toys.plain_steps(arguments, 2)
    runtime = local(pipeline)
    runtime.load_state(arguments)
    runtime.step(arguments)
    results, spans = runtime.timeline(arguments)
    np.testing.assert_allclose([results[3], results[4]], seen[1], rtol=1e-5)
    tasks = {(s.stage, s.program, s.microbatch) for s in spans}
    assert {(t.stage, "forward", t.microbatch) for w in pipeline.schedule.workers for t in w} <= tasks
    assert all(0 <= s.start_s <= s.end_s for s in spans)
    ends = {(s.stage, s.program, s.microbatch): s.end_s for s in spans}
    starts = {(s.stage, s.program, s.microbatch): s.start_s for s in spans}
    assert ends[0, "forward", 2] <= starts[0, "backward", 2]


def test_callers_arrays_stay_the_callers():
    pipeline = toys.chain(toys.schedule(2, 4))
    arguments = toys.arguments(pipeline)
    given = [jax.device_put(a, jax.devices()[0]) for a in arguments]
    runtime = local(pipeline)
    runtime.load_state(given)
    batch = [a.copy() for a in arguments]
    results = runtime.step(batch)
    batch[-1][:] = batch[-2][:] = np.nan  # refilled while the step may still run
    again = runtime.step(given)
    _, seen = toys.plain_steps(arguments, 2)
    np.testing.assert_allclose([results[2], again[2]], [seen[0][0], seen[1][0]], rtol=1e-5)
    assert not any(a.is_deleted() for a in given)


def test_not_a_number_passes_unchanged():
    pipeline = toys.chain(toys.schedule(2, 2))
    arguments = toys.arguments(pipeline)
    arguments[-2][0, 0] = np.nan
    runtime = local(pipeline)
    runtime.load_state(arguments)
    results = runtime.step(arguments)
    assert np.isnan(results[2]) and np.isnan(results[3])


def test_a_failing_program_names_itself_and_loses_the_state():
    pipeline = toys.chain(toys.schedule(2, 4))
    meshes = stage_meshes(pipeline, jax.devices())
    programs = toys.jitted(pipeline, meshes)
    calls, backward = [], programs[1]["backward"]

    def breaks(*arrays):
        calls.append(1)
        if len(calls) in (3, 6):
            raise ValueError("out of luck")
        return backward(*arrays)

    programs[1]["backward"] = breaks
    runtime = LocalRuntime(pipeline, programs, meshes)
    arguments = toys.arguments(pipeline)
    for run in (runtime.step, runtime.timeline):
        runtime.load_state(arguments)
        with pytest.raises(StageError, match=r"step 0 .*backward of stage 1 of micro-batch 2.*out of luck"):
            run(arguments)
        with pytest.raises(StageError, match="load_state"):
            runtime.fetch_state()
    runtime.load_state(arguments)
    np.testing.assert_allclose(runtime.step(arguments)[2], toys.plain(arguments)[1], rtol=1e-5)


def test_wrong_arguments_are_refused():
    pipeline = toys.chain(toys.schedule(2, 4))
    runtime = local(pipeline)
    arguments = toys.arguments(pipeline)
    with pytest.raises(StageError, match="load_state"):
        runtime.step(arguments)
    with pytest.raises(PlanError, match="argument 1 of toy"):
        runtime.load_state([arguments[0], arguments[1][:2], *arguments[2:]])
    runtime.load_state(arguments)
    with pytest.raises(PlanError, match="argument 2 of toy"):
        runtime.step([*arguments[:2], arguments[2][:3], arguments[3]])
    with pytest.raises(PlanError, match="8 stages on 16 devices"):
        stage_meshes(toys.chain(toys.schedule(8, 2), devices=2), jax.devices())


def test_two_hundred_steps_keep_memory_flat():
    pipeline = toys.chain(toys.schedule(2, 2))
    arguments = toys.arguments(pipeline)
    runtime = local(pipeline)
    others = jax.live_arrays()  # held, lest some die while those of the runtime are counted
    runtime.load_state(arguments)
    alive = []
    for _ in range(200):
        jax.block_until_ready(runtime.step(arguments))
        alive.append(len(jax.live_arrays()) - len(others))
    assert alive[-1] == alive[1]


@pytest.mark.parametrize(("source", "target"), [(P(), P()), (P("d"), P("d")), (P("d"), P()), (P(), P("d"))])
def test_handover_puts_an_array_where_it_shall_be(source, target):
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    here, there = (
        NamedSharding(Mesh(part, ("d",)), spec) for part, spec in zip(devices, (source, target), strict=True)
    )
    value = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    array = jax.device_put(value, here)
    moved = handover(here, there, value.shape, "float32")(array)
    assert moved.sharding == there
    jax.jit(lambda x: -x, donate_argnums=0)(array).block_until_ready()  # its memory may be taken
    np.testing.assert_array_equal(moved, value)


@pytest.mark.parametrize("size", [4, 1 << 20])
def test_handover_between_single_devices_shares_no_memory(size):
    here, there = (NamedSharding(Mesh(np.array([device]), ("d",)), P()) for device in jax.devices()[:2])
    value = np.arange(size, dtype=np.float32)
    put = handover(here, there, value.shape, "float32")
    array = jax.block_until_ready(jax.device_put(value, here))
    moved = put(array)
    again = put(moved if isinstance(moved, np.ndarray) else array)
    jax.jit(lambda x: -x, donate_argnums=0)(array).block_until_ready()  # its memory may be taken
    late = put(jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y + 1, x), out_shardings=here)(value))
    doubled = jax.jit(lambda x: 2 * x, in_shardings=there, donate_argnums=0)(again)  # and that of what arrived
    np.testing.assert_array_equal(doubled, 2 * value)
    np.testing.assert_array_equal(moved, value)
    np.testing.assert_array_equal(late, value + 200)


@pytest.mark.parametrize("spec", [P(), P("d"), P(None, "d")])
def test_feeding_copies_an_array_of_the_host(spec):
    where = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("d",)), spec)
    place = feeding(where, (64, 64), "float32")
    value = np.arange(64.0 * 64, dtype=np.float32).reshape(64, 64)
    expected = value.copy()
    for given in (value, value[:], jax.numpy.asarray(value)):
        placed = place(given)
        assert placed.sharding == where
        assert placed.committed
        np.testing.assert_array_equal(placed, expected)
    placed = place(value)
    value[:] = 0  # the caller's next batch
    np.testing.assert_array_equal(placed, expected)
