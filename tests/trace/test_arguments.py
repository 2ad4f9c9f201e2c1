"""Arguments: names, static values, and what a later call must look like."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.errors import PlanError
from autopar.trace import flatten_args, trace

STATE = {"w": jnp.ones((4, 3)), "n": jnp.array(0)}
BATCH = {"x": np.ones((8, 4))}


def step(state, batch, mode, *rest, lr=0.1, flag="a"):
    scale = {"train": 1.0, "eval": 0.0}[mode] * (2.0 if flag == "b" else 1.0)
    w = state["w"] - lr * scale * (batch["x"].sum() + sum(r.sum() for r in rest))
    return {"w": w, "n": state["n"] + 1}


def test_paths_use_the_parameter_names():
    extra = jnp.ones(2)
    keywords = {"lr": 0.5, "flag": "b"}
    traced = trace(step, (STATE, BATCH, "train", extra, extra), keywords, static_argnames=("mode", "flag"))
    expected = ("state['n']", "state['w']", "batch['x']", "rest[0]", "rest[1]", "lr")
    assert traced.in_paths == expected
    assert tuple(traced.step.graph.values[v].name for v in traced.step.graph.inputs) == expected
    assert traced.out_paths == ("result['n']", "result['w']")
    assert dict(traced.signature.statics) == {2: "train", "flag": "b"}
    leaves = flatten_args(traced, (STATE, BATCH, "train", extra, extra), keywords)
    assert len(leaves) == 6 and leaves[5] == 0.5


def test_static_by_number_or_by_name_is_the_same():
    by_number = trace(step, (STATE, BATCH, "eval"), static_argnums=2)
    by_name = trace(step, (STATE, BATCH, "eval"), static_argnames="mode")
    from_end = trace(step, (STATE, BATCH, "eval"), static_argnums=-1)
    as_keyword = trace(step, (STATE, BATCH), {"mode": "eval"}, static_argnums=2)
    found = {t.step.graph.fingerprint for t in (by_number, by_name, from_end, as_keyword)}
    assert len(found) == 1
    assert flatten_args(as_keyword, (STATE, BATCH), {"mode": "eval"})


def test_a_jitted_step_keeps_its_options():
    jitted = partial(jax.jit, static_argnames="mode", donate_argnums=0)(step)
    traced = trace(jitted, (STATE, BATCH, "train"))
    assert traced.step.donated == {0, 1} and traced.step.name == "step"
    assert traced.in_paths == ("state['n']", "state['w']", "batch['x']")
    assert trace(jax.jit(lambda s, b: jitted(s, b, "train")), (STATE, BATCH)).step.donated == {0, 1}
    assert trace(step, (STATE, BATCH, "train"), static_argnums=2, donate_argnames="batch").step.donated == {2}


def test_nothing_is_materialised():
    huge = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)
    traced = trace(lambda w, key: (w * 2, jax.random.key_data(key)), (huge, jax.eval_shape(jax.random.key, 0)))
    assert traced.step.graph.values[0].nbytes == 4 << 40


def test_python_numbers_and_small_dtypes():
    traced = trace(lambda x, s, b: (x * s, b), (jnp.ones(3, jnp.bfloat16), 2.0, True))
    assert [traced.step.graph.values[v].dtype for v in traced.step.graph.inputs] == ["bfloat16", "float64", "bool"]
    assert flatten_args(traced, (jnp.ones(3, jnp.bfloat16), 3.0, False))[1:] == [3.0, False]


def _refused(traced, args, kwargs, *words):
    with pytest.raises(PlanError) as caught:
        flatten_args(traced, args, kwargs)
    for w in words:
        assert re.search(w, str(caught.value)), (w, str(caught.value))


def test_calls_that_do_not_fit():
    traced = trace(step, (STATE, BATCH, "train"), static_argnums=2)
    ok = {"state": STATE, "batch": BATCH}
    _refused(traced, ({**STATE, "w": jnp.ones((4, 5))}, BATCH, "train"), {}, r"state\['w'\]", r"float64\[4,3\]",
             r"float64\[4,5\]")  # fmt: skip
    _refused(traced, (STATE, {"x": np.ones((8, 4), np.float32)}, "train"), {}, r"batch\['x'\]", "found float32")
    _refused(traced, ({**STATE, "v": 1.0}, BATCH, "train"), {}, r"unexpected state\['v'\]")
    _refused(traced, ({"n": 0}, BATCH, "train"), {}, r"missing state\['w'\]")
    _refused(traced, (STATE, {"x": "text"}, "train"), {}, r"batch\['x'\]", "found a str")
    _refused(traced, (STATE, BATCH, "eval"), {}, "static argument mode", "'train'", "'eval'")
    _refused(traced, (STATE, BATCH), {}, "static argument mode is missing")
    _refused(traced, (), {**ok, "mode": "train"}, "static argument")


def test_structs_and_arrays_are_alike():
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (STATE, BATCH))
    a = trace(step, (*structs, "train"), static_argnums=2)
    b = trace(step, (STATE, BATCH, "train"), static_argnums=2)
    assert a.step.graph.fingerprint == b.step.graph.fingerprint
    assert len(flatten_args(a, (STATE, BATCH, "train"))) == 3
