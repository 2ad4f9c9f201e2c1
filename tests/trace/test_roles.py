"""Which arguments are state, which are data."""

import jax
import jax.numpy as jnp
import optax
import pytest

from autopar.trace import trace
from tests.trace import steps

W = jnp.ones((4, 4))
X = jnp.ones((8, 4))
PARAMS = {"w": W, "b": jnp.ones(4)}


def _state(fun, *args, **options):
    step = trace(fun, args, **options)
    pairs = {step.in_paths[i]: step.out_paths[o] for i, o in step.step.state}
    return pairs, {step.in_paths[i] for i in step.step.batch}


def _new(p, x):
    return jax.tree.map(lambda v: v - x.sum(), p)


@pytest.mark.parametrize(
    ("case", "states", "batch"),
    [
        (steps.mlp_adam, 2, {"batch['x']", "batch['y']"}),
        (steps.linen_dropout, 1, {"batch['x']", "batch['y']"}),
        (steps.nnx_split, 1, {"x", "y"}),
        (steps.nnx_objects, 2, {"x", "y"}),
        (steps.equinox_checkpoint, 1, {"x"}),
        (steps.moe_routing, 1, {"x"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_state_of_real_steps(case, states, batch):
    fun, args = case()
    pairs, data = _state(fun, *args)
    leaves = len(jax.tree.leaves(args[:states]))
    assert len(pairs) == leaves
    assert data == batch
    for before, after in pairs.items():
        assert before.partition("[")[0].partition(".")[0] not in batch
        assert before[len(before.rstrip("]'")) - 3 :][-3:] == after[-3:]


def test_result_orders_and_containers():
    assert _state(lambda p, x: _new(p, x), PARAMS, X)[0] == {"p['b']": "result['b']", "p['w']": "result['w']"}
    assert _state(lambda p, x: (x.sum(), _new(p, x)), PARAMS, X)[0]["p['w']"] == "result[1]['w']"
    named = _state(lambda p, x: {"loss": x.sum(), "params": _new(p, x)}, PARAMS, X)[0]
    assert named["p['w']"] == "result['params']['w']"
    nested = _state(lambda p, q, x: ((_new(p, x), _new(q, x)), x.sum()), PARAMS, PARAMS, X)[0]
    assert nested["p['w']"] == "result[0][0]['w']" and nested["q['w']"] == "result[0][1]['w']"
    flat = _state(lambda s, x: (_new(s[0], x), s[1] + 1, x.sum()), (PARAMS, jnp.array(0)), X)[0]
    assert flat["s[0]['w']"] == "result[0]['w']" and flat["s[1]"] == "result[1]"


def test_a_state_that_grows_a_field_is_matched_by_path():
    pairs = _state(lambda s, x: {**_new(s, x), "loss": x.sum()}, PARAMS, X)[0]
    assert pairs == {"s['b']": "result['b']", "s['w']": "result['w']"}


def test_frozen_parameters_are_no_predecessor_of_the_moments():
    tx = optax.adam(1e-3)

    def step(frozen, params, opt_state, x):
        updates, opt_state = tx.update(_new(params, x @ frozen["w"]), opt_state)
        return optax.apply_updates(params, updates), opt_state

    pairs = _state(step, PARAMS, PARAMS, tx.init(PARAMS), X)[0]
    # Equal structures are told apart by their order alone, so the first argument wins the first element.
    assert pairs["opt_state[0].mu['w']"] == "result[1][0].mu['w']"
    assert len(pairs) == 2 + 5


def test_bare_arrays():
    assert _state(lambda w, x: (w - x.sum(), x.sum()), W, X)[0] == {"w": "result[0]"}
    assert _state(lambda w, x: w - x.sum(), W, X) == ({"w": "result"}, {"x"})
    logits_like_data = _state(lambda w, x: (w - x.sum(), (x @ w).sum(), x @ w), W, X)
    assert logits_like_data == ({"w": "result[0]"}, {"x"})
    learning_rate = _state(lambda w, lr, x: (w - lr * x.sum(), x.sum()), W, 0.1, X)
    assert learning_rate == ({"w": "result[0]"}, {"x"})
    counter = _state(lambda w, n, x: (w - x.sum(), n + 1), W, 0, X)[0]
    assert counter["n"] == "result[1]"


def test_keys_are_no_data():
    def step(key, w, x):
        key, sub = jax.random.split(key)
        return {"loss": x.sum()}, w - x.sum() * jax.random.normal(sub), key

    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        pairs, batch = _state(step, key, W, X)
        assert pairs == {"key": "result[2]", "w": "result[1]"} and batch == {"x"}


def test_batch_argnums():
    _, batch = _state(lambda w, table, x: w - (x @ table).sum(), W, W, X, batch_argnums=2)
    assert batch == {"x"}
    _, batch = _state(
        lambda w, n, t, x: w - (x @ t).sum() * n, W, 2, W, X, batch_argnums=(-1,), static_argnums=1
    )  # fmt: skip
    assert batch == {"x"}
