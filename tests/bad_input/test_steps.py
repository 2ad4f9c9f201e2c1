"""Steps that cannot be spread: the message names the culprit and its line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import autopar
from tests.bad_input.steps import STATE, X, Y, planned, refused


def line_of(marker):
    with open(__file__) as file:
        found = next(i for i, text in enumerate(file, 1) if text.rstrip().endswith(f"# {marker}"))
    return rf"test_steps\.py:{found}"


def test_python_branch_on_a_traced_value():
    def step(x):
        if x.sum() > 0:  # branch
            return x
        return -x

    words = ("cannot be traced", line_of("branch"), "boolean conversion", "jnp.where", "static_argnums")
    with refused(autopar.TraceError, *words):
        planned(step, X)
    with refused(autopar.TraceError, *words):
        autopar.compile(step, X, cluster="cpu:8")
    with refused(autopar.TraceError, *words):
        autopar.parallelize(step, cluster="cpu:8")(X)


def test_numpy_on_a_traced_value():
    with refused(autopar.TraceError, r"test_steps\.py", "numpy", "no values"):
        planned(lambda x: np.sin(x), X)


def test_the_steps_own_errors_come_through():
    def step(x):
        return x @ x

    with pytest.raises(TypeError, match="dot_general"):
        planned(step, X)


def test_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        planned(lambda state, x, y: state, STATE, X)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_shard_map_inside(axes):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))

    def step(x):
        return jax.shard_map(lambda v: v * 2, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x)  # by hand

    with refused(autopar.TraceError, "by hand", "shard_map", line_of("by hand"), "one device"):
        planned(step, X)


@pytest.mark.parametrize(
    "effect, name",
    [
        (lambda x: jax.debug.print("{}", x), r"jax\.debug\.print"),
        (lambda x: io_callback(print, None, x), "io_callback"),
    ],
)
def test_side_effect_inside(effect, name):
    def step(x):
        effect(x)
        return x * 2

    with refused(autopar.TraceError, "side effect", name, r"test_steps\.py:\d+", "return the value"):
        planned(step, X)


def test_things_that_are_no_function():
    with refused(autopar.OptionError, "must be a function", "found 3"):
        planned(3, X)
    with refused(autopar.OptionError, "spreads a function, not 'cpu:8'", "cluster='cpu:8'"):
        autopar.parallelize("cpu:8")


def test_settings_that_are_no_positions():
    with refused(autopar.OptionError, "donate_argnums", "positions", "'state'"):
        planned(lambda state, x: state, STATE, X, donate_argnums="state")


def test_changes_in_place_and_ignored_placements_reach_the_plan():
    def step(state, x):
        state["w"] = state["w"] + 1
        return jax.device_put(x, jax.devices()[0]) + jnp.sum(state["v"])

    warnings = " ".join(planned(step, dict(STATE), Y).warnings)
    assert "'state' in place" in warnings and "device_put at test_steps.py" in warnings
