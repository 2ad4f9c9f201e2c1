"""Every refusal says what was found, on which line, and what to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from autopar.errors import TraceError
from autopar.trace import trace

X = jnp.ones((8, 4))


def _line(marker):
    """The line of this file that ends with ``# marker``."""
    with open(__file__) as f:
        return next(i for i, text in enumerate(f, 1) if text.rstrip().endswith(f"# {marker}"))


def _refused(fun, *args, match=(), **options):
    with pytest.raises(TraceError) as caught:
        trace(fun, args, **options)
    for words in match:
        assert re.search(words, str(caught.value)), (words, str(caught.value))
    return str(caught.value)


def test_python_branch_on_a_traced_value():
    def step(x):
        if x.sum() > 0:  # branch
            return x
        return -x

    line = rf"test_errors\.py:{_line('branch')} \(step\)"
    message = _refused(step, X, match=[line, "boolean conversion", r"jax\.lax\.cond", "static_argnums"])
    assert "\n" not in message


def test_numpy_on_a_traced_value():
    _refused(lambda x: np.sin(x) + 1, X, match=[r"test_errors\.py:\d+", "cannot be traced"])


def test_shape_from_a_traced_value():
    _refused(lambda x: jnp.zeros(x[0, 0].astype(int)), X, match=["cannot be traced", "no values"])


def test_errors_of_the_step_itself_are_left_alone():
    def step(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trace(step, (X,))


def test_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), "d")

    def step(x):
        inner = jax.shard_map(lambda v: jax.lax.psum(v, "d"), mesh=mesh, in_specs=P("d"), out_specs=P())
        return inner(x).sum()  # manual

    _refused(step, X, match=["shard_map", rf"test_errors\.py:{_line('manual')} \(step\)", "written for one device"])


def test_shard_map_inside_a_loop_inside_a_jit():
    mesh = Mesh(np.array(jax.devices()[:2]), "d")
    inner = jax.shard_map(lambda v: v * 2, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    step = jax.jit(lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=2)[0])
    _refused(step, X, match=["shard_map", r"test_errors\.py:\d+"])


def test_pmap():
    _refused(lambda x: jax.pmap(lambda v: v + 1)(x[:2]), X, match=["by hand", r"test_errors\.py:\d+"])


def test_collectives_over_a_vmapped_axis_are_fine():
    traced = trace(lambda x: jax.vmap(lambda v: v - jax.lax.pmean(v, "i"), axis_name="i")(x), (X,))
    assert [op.primitive for op in traced.step.graph.ops][:2] == ["reduce_sum", "div"]


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (lambda x: jax.debug.print("{}", x), "jax.debug.print"),
        (lambda x: jax.debug.callback(print, x), "jax.debug.callback"),
        (lambda x: io_callback(print, None, x, ordered=True), "io_callback"),
        (lambda x: io_callback(print, None, x), "io_callback"),
    ],
    ids=["print", "callback", "ordered", "unordered"],
)
def test_side_effects(effect, words):
    def step(x):
        effect(x)
        return x * 2

    _refused(step, X, match=["side effect", words, r"test_errors\.py:\d+", "return the value"])


def test_side_effect_inside_a_differentiated_scan():
    def step(w, x):
        def body(c, v):
            jax.debug.print("{}", c)  # inside
            return c * w + v.sum(), None

        return jax.grad(lambda w: jax.lax.scan(body, w, x)[0])(w)

    _refused(step, jnp.array(1.0), X, match=[rf"test_errors\.py:{_line('inside')}"])


def test_pure_callback_is_an_op_of_its_own():
    def step(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    (op,) = trace(step, (X,)).step.graph.ops
    assert op.opaque and op.primitive == "pure_callback"


def test_mutable_references():
    def step(x):
        ref = jax.new_ref(x)
        ref[...] = ref[...] + 1
        return ref[...]

    _refused(step, X, match=["mutable array reference", r"test_errors\.py:\d+", "return the new value"])


def test_a_leaf_that_is_no_array():
    args = ({"w": X, "activation": jnp.tanh}, X)
    _refused(lambda state, x: x, *args, match=[r"state\['activation'\]", "static_argnames='state'"])
    _refused(lambda state, mode: X, X, "train", match=["argument mode is a str", r"static_argnums=1"])


def test_changes_in_place_that_are_lost():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def step(model, x):
        grads = nnx.grad(lambda m: m(x).sum())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - g, nnx.state(model), grads))
        return x.sum()

    _refused(step, model, X, match=["'model' in place", "Linear", r"return model, \.\.\."])

    def on_a_dict(state, x):
        state["w"] = state["w"] + x.sum()
        return x

    assert "'state' in place" in trace(on_a_dict, ({"w": X}, X)).notes[0]


def test_options_that_name_no_argument():
    _refused(lambda x, n: x * n, X, 2, static_argnames="m", match=["'m'", "x, n"])
    _refused(lambda x, n: x * n, X, 2, static_argnums=1, batch_argnums=1, match=["argument 1", r"0 \(x\)"])


def test_a_sharding_constraint_is_noted():
    mesh = Mesh(np.array(jax.devices()[:2]), "d")

    def step(x):
        x = jax.device_put(x, jax.memory.Space.Device)
        return jax.lax.with_sharding_constraint(x * 2, jax.NamedSharding(mesh, P("d")))

    traced = trace(step, (X,))
    assert [op.primitive for op in traced.step.graph.ops] == ["mul"]
    assert re.match(r"jax.device_put at test_errors\.py:\d+ .* ignored", traced.notes[0])
    assert re.match(r"with_sharding_constraint at test_errors\.py:\d+ .* ignored", traced.notes[1])


def test_functools_partial_and_callable_objects():
    class Model:
        def __call__(self, w, x):
            return w - x.sum()

    assert trace(functools.partial(lambda s, w, x: w - x.sum() * s, 2.0), (X, X)).in_paths == ("w", "x")
    assert trace(Model(), (X, X)).step.name == "Model"
