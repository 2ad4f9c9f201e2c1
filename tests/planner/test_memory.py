"""What is stored, when, and in whose place: small steps whose buffers can be counted by hand."""

import collections

import jax
import jax.numpy as jnp
import pytest

from autopar import Cluster, Options
from autopar.planner import plan_step
from autopar.planner.atoms import build_atoms
from autopar.planner.memory import lifetimes, profile
from autopar.planner.memory.fusion import Reading, placed
from autopar.planner.memory.kernels import kernels
from autopar.planner.memory.order import depth_first, greedy, ordered
from autopar.trace import trace

N = 64
ARRAY = N * N * 4  # bytes


def step_of(fun, *shapes, donate=()):
    return trace(fun, tuple(jax.ShapeDtypeStruct(s, "float32") for s in shapes), {}, donate_argnums=donate).step


def stored(step):
    """Primitives whose results have a buffer."""
    atoms = build_atoms(step)
    uses = placed(Reading(atoms)).uses
    return sorted(a.name for a in atoms.atoms if a.kind == "op" for v in a.results if uses[v, False, None].stored)


def peak(step, *, reordered=False):
    """Peak bytes on one device, everything replicated."""
    atoms = build_atoms(step).on((1,))
    operands, made = [], {}
    for atom in atoms.atoms:
        choice = atoms.choices(atom)[0]
        operands.append(choice.operands)
        made.update(zip(atom.results, choice.results, strict=True))
    return profile(atoms, operands, made, {}, reordered=reordered)


def test_a_chain_of_pointwise_ops_is_one_kernel():
    assert stored(step_of(lambda x: jnp.tanh(x * 2 + 1) - x, (N, N))) == ["sub"]


def test_a_matrix_product_reads_and_writes_memory():
    assert stored(step_of(lambda x, w: jnp.sum((x + 1) @ w), (N, N), (N, N))) == ["add", "dot_general", "reduce_sum"]


def test_a_costly_result_for_two_kernels_is_stored_a_cheap_one_is_not():
    def two_products(f):
        return lambda x, w: ((f(x) + 1) @ w, (f(x) + 2) @ w)

    assert stored(step_of(two_products(jnp.tanh), (N, N), (N, N))).count("tanh") == 1
    assert stored(step_of(two_products(jnp.negative), (N, N), (N, N))).count("neg") == 0


def test_a_mask_is_made_again_from_its_random_bits():
    def drop(x, key, w):
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.where(mask, x @ w, 0.0) @ w, jnp.where(mask, x + 1, 0.0) @ w

    avals = (jax.ShapeDtypeStruct((N, N), "float32"), jax.eval_shape(lambda: jax.random.key(0)))
    found = stored(trace(drop, (*avals, avals[0])).step)
    assert "threefry2x32" in found
    assert "lt" not in found


def test_a_reshape_is_another_name():
    lives = lifetimes(build_atoms(step_of(lambda x: jnp.sum((x @ x).reshape(-1) * 2), (N, N))))
    assert sum(life.kind == "transient" for life in lives) == 1


def test_a_pointwise_kernel_writes_in_the_place_of_what_dies():
    found = peak(step_of(lambda x: jnp.tanh(x @ x) @ x, (N, N)))
    assert found.peak_bytes == 3 * ARRAY  # x, the result, and the one buffer between


def test_new_state_lies_in_the_place_of_the_old():
    step = step_of(lambda w, x: w - 0.1 * x, (N, N), (N, N), donate=0)
    assert peak(step).peak_bytes == 2 * ARRAY
    assert peak(step_of(lambda w, x: w - 0.1 * x, (N, N), (N, N))).peak_bytes == 3 * ARRAY


def test_the_order_decides_what_late_gradients_hold():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    def train(ws, x):
        grads = jax.grad(loss)(ws, x)
        norm = sum(jnp.sum(g * g) for g in grads)
        return [w - g / norm for w, g in zip(ws, grads, strict=True)]

    shapes = [jax.ShapeDtypeStruct((N, N), "float32")] * 6
    step = trace(train, (shapes, jax.ShapeDtypeStruct((16 * N, N), "float32")), {}, donate_argnums=0).step
    atoms = build_atoms(step)
    scope = kernels(Reading(atoms)).top
    peaks = {}
    for rule in (depth_first, greedy):
        held, most = {}, 0
        order = ordered(scope, lambda key: atoms.step.graph.values[key[0]].nbytes, rule)
        assert sorted(k.at for k in order) == sorted(k.at for k in scope)
        left = collections.Counter(key for k in order for key in k.reads)
        for k in order:
            assert all(key in held or key[0] in atoms.step.graph.inputs for key in k.reads)
            held.update({key: atoms.step.graph.values[key[0]].nbytes for key in k.writes})
            most = max(most, sum(held.values()))
            left.subtract(list(k.reads))
            held = {key: n for key, n in held.items() if left[key] > 0}
        peaks[rule.__name__] = most
    assert peaks["greedy"] < peaks["depth_first"]
    assert peak(step, reordered=True).peak_bytes >= peak(step).peak_bytes


def test_a_sum_of_products_reads_the_factors():
    def moments(x, w):
        y = x @ w
        return jnp.sum(y * y, axis=0)

    assert stored(step_of(moments, (8 * N, N), (N, N))) == ["dot_general", "reduce_sum"]


@pytest.mark.parametrize("length", [2, 8])
def test_a_scan_holds_one_round_and_what_it_stacks(length):
    def run(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), c), x, length=length)

    found = peak(step_of(run, (N, N))).peak_bytes
    assert length * ARRAY + 2 * ARRAY <= found <= length * ARRAY + 5 * ARRAY


def test_what_is_added_up_in_a_loop_has_one_buffer():
    def run(w, xs):
        return jax.lax.scan(lambda total, x: (total + w @ x, None), jnp.zeros_like(w), xs)[0]

    found = peak(step_of(run, (N, N), (2, N, N))).peak_bytes
    assert found == (1 + 2 + 1 + 1 + 1) * ARRAY  # w, xs, the sum, a product, a slice of xs


def test_the_peak_is_the_sum_of_its_kinds():
    recipe_step = step_of(lambda w, x: w - jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w), (N, N), (8 * N, N), donate=0)
    plan = plan_step(recipe_step, Cluster.parse("h100:8"), Options(mesh=(8,)))
    assert sum(plan.memory.values()) == plan.peak_bytes
