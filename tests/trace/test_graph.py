"""What is inlined, kept, forwarded and dropped."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from autopar.ir import verify
from autopar.trace import trace
from autopar.trace.digest import canonical, params_digest
from tests.trace import steps

X = jnp.ones((8, 4))


def _names(fun, *args):
    return [op.primitive for op in trace(fun, args).step.graph.ops]


def test_identities_disappear():
    def step(x):
        x = checkpoint_name(jax.lax.stop_gradient(x), "here")
        x = jax.device_put(jnp.copy(x)).reshape(8, 4).astype(x.dtype)
        return jnp.transpose(jnp.broadcast_to(x, (8, 4)), (0, 1)) * 2

    assert _names(step, X) == ["mul"]


def test_what_adds_nothing_disappears():
    """As XLA does it: else a sum over devices would be planned for a loss and for the same loss and nothing."""
    assert _names(lambda x: (0.0 + x * 1.0 - 0.0) / 1.0 + jnp.zeros(()), X) == []
    assert _names(lambda x: (0.0 - x, 1.0 / x, x + 1.0, x * 0.0), X) == ["sub", "div", "add", "mul"]


def test_zeros_are_followed():
    """Gradients of what was stopped add nothing to a norm, and leave their parameters as they are."""

    def step(params, x):
        def loss(params):
            return jnp.sum((x @ params["w"] + jax.lax.stop_gradient(params["b"])) ** 2)

        grads = jax.grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda p, g: p + g, params, grads), norm

    graph = trace(step, ({"w": jnp.ones((4, 4)), "b": jnp.ones(4)}, X)).step.graph
    assert [op.primitive for op in graph.ops].count("reduce_sum") == 1
    assert graph.inputs[0] == graph.outputs[0]  # b comes back as it is


def test_raw_keys_are_not_wrapped_and_unwrapped():
    names = _names(lambda k: jax.random.bits(k, (4, 6), jnp.uint32), jax.random.PRNGKey(0))
    assert not {"random_wrap", "random_unwrap", "random_bits"} & set(names)
    assert names.count("threefry2x32") == 1


def test_other_generators_keep_their_bits_whole():
    for key in (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="unsafe_rbg")):
        assert "random_bits" in _names(lambda k: jax.random.bits(k, (4, 6), jnp.uint32), key)
    with jax.threefry_partitionable(False):
        assert "random_bits" in _names(lambda k: jax.random.bits(k, (4, 6), jnp.uint32), jax.random.key(0))


def test_dead_code_is_dropped_inside_loops_too():
    def step(w, x):
        def body(c, v):
            a, b = c
            return (jnp.sin(a), b + jnp.cos(v)), (a.sum(), jnp.tan(v))

        (a, _), (sums, _) = jax.lax.scan(body, (w, x[0]), x)
        jnp.exp(x)
        return a, sums

    graph = trace(step, (X, X)).step.graph
    assert "exp" not in {op.primitive for op in graph.ops}
    assert {op.primitive for op in graph.ops[-1].regions[0].ops} == {"sin", "reduce_sum"}
    used = set(graph.inputs) | {v for op in graph.walk() for v in (*op.operands, *op.results)}
    used |= {v for op in graph.walk() for r in op.regions for v in r.inputs}
    assert set(graph.values) <= used | set(graph.outputs)


def test_captured_arrays_reach_regions_as_operands():
    fun, args = steps.nested_scan_reverse()
    traced = trace(fun, args)
    graph = traced.step.graph
    assert len(graph.constants) == len(traced.constants) == 1
    loops = [op for op in graph.ops if op.loop]
    assert loops and any(graph.constants[0] in op.operands for op in loops)
    for op in graph.walk():
        for region in op.regions:
            made = set(region.inputs) | {v for inner in region.ops for v in inner.results}
            free = {v for inner in region.ops for v in inner.operands if not graph.values[v].literal} - made
            assert not free
            if op.loop.kind == "scan":
                assert len(region.inputs) == len(op.operands)
                assert {"length", "reverse"} <= set(traced.equations[op.id].params)


def test_scalars_captured_are_literals():
    scale = np.float32(2.5)
    traced = trace(lambda x: x * jnp.asarray(scale, x.dtype) + np.float64(1.0), (X,))
    assert not traced.constants
    assert {2.5, 1.0} <= set(traced.literals.values())
    assert all(traced.step.graph.values[v].literal for v in traced.literals)


def test_outputs_may_repeat_be_inputs_or_literals():
    traced = trace(lambda x: (x, x, jnp.float64(3.0), x + 1), (X,))
    out = traced.step.graph.outputs
    assert out[0] == out[1] == traced.step.graph.inputs[0]
    assert traced.literals[out[2]] == 3.0


def test_complex_and_float0():
    assert "mul" in _names(lambda x: (x * 1j).real, X)

    def step(x, n):
        return jax.vjp(lambda x, n: x * n, x, n)[1](x)

    assert trace(step, (X, 3)).step.graph.values


@pytest.mark.parametrize("case", steps.CASES, ids=lambda c: c.__name__)
def test_fingerprints_do_not_depend_on_the_trace(case):
    fun, args = case()
    first = trace(fun, args)
    jax.clear_caches()
    again = trace(*case())
    assert first.step.graph.fingerprint == again.step.graph.fingerprint
    assert [op.where for op in first.step.graph.walk()] == [op.where for op in again.step.graph.walk()]
    verify(first.step.graph)


def test_fingerprints_are_equal_in_another_process():
    program = (
        "from tests.trace import steps\nfrom autopar.trace import trace\n"
        "for case in steps.CASES: print(case.__name__, trace(*case()).step.graph.fingerprint)"
    )
    root = Path(__file__).parents[2]
    config = "import jax; jax.config.update('jax_enable_x64', True)\n"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", config + program],
        cwd=root, env={"PYTHONHASHSEED": "12345", "PATH": "", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = dict(line.split() for line in found.stdout.splitlines())
    here = {case.__name__: trace(*case()).step.graph.fingerprint for case in steps.CASES}
    assert there == here


def test_parameters_that_differ_have_other_digests():
    graph = trace(lambda x: (x.sum(0), x.sum(1), x.T.sum(0)), (X,)).step.graph
    sums = [op.params for op in graph.ops if op.primitive == "reduce_sum"]
    assert sums[0] != sums[1] and sums[0] == sums[2]
    forwards = trace(lambda x: jax.lax.scan(lambda c, v: (c + v, c), x[0], x), (X,)).step.graph.ops[-1]
    backwards = trace(lambda x: jax.lax.scan(lambda c, v: (c + v, c), x[0], x, reverse=True), (X,)).step.graph.ops[-1]
    body = trace(lambda x: jax.lax.scan(lambda c, v: (c * v, c), x[0], x), (X,)).step.graph.ops[-1]
    assert len({forwards.params, backwards.params, body.params}) == 3


def test_no_address_reaches_a_digest():
    class Thing:
        pass

    jaxpr = jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) + np.arange(4.0)))(X)
    for x in (Thing(), lambda: 0, print, jaxpr, {"b": {1, 2}, "a": np.arange(3)}, jax.random.key(1), jnp.bfloat16):
        assert "0x" not in canonical(x)
    assert params_digest({"a": 1, "b": 2}) == params_digest({"b": 2, "a": 1}) != params_digest({"a": 2, "b": 1})
    assert canonical(jaxpr) == canonical(jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) + np.arange(4.0)))(X))
