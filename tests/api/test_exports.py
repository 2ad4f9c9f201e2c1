"""A plan's layouts in other hands: a flax and optax trainer of its own, under jax.jit, with what was exported."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import autopar
from tests.bad_input.steps import refused

OPTIONS = autopar.Options(mesh=(2, 4), strategy="fsdp")


class Net(nn.Module):
    """Three layers of one size, and a head."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = x + jnp.tanh(nn.Dense(32, param_dtype=jnp.float64)(x))
        return nn.Dense(8, param_dtype=jnp.float64)(x)


TX = optax.adamw(1e-2)


def train_step(state, batch):
    """One step, written for one device."""

    def loss_fn(params):
        return jnp.mean((Net().apply(params, batch["x"]) - batch["y"]) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state["params"])
    updates, opt = TX.update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.array(rng.standard_normal((64, 32))), "y": jnp.array(rng.standard_normal((64, 8)))}
    params = Net().init(jax.random.key(0), batch["x"])
    return {"params": params, "opt": TX.init(params)}, batch


@pytest.fixture(scope="module")
def plan(arguments):
    return autopar.plan(train_step, *arguments, cluster="cpu:8", options=OPTIONS)


def mesh(shape=(2, 4)):
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), ("x", "y")[: len(shape)])


def test_another_trainer_runs_with_the_shardings_of_a_plan(arguments, plan):
    where, keywords = plan.shardings(mesh())
    assert keywords == {} and jax.tree.structure(where) == jax.tree.structure(arguments)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(where[0]))
    state, loss = jax.jit(train_step, in_shardings=where, out_shardings=(where[0], None))(*arguments)
    expected, seen = jax.jit(train_step)(*arguments)
    np.testing.assert_allclose(loss, seen, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), state, expected)
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, where[0]))


def test_the_text_makes_the_same_shardings(arguments, plan):
    names = {}
    exec(compile(plan.partition_specs(), "specs.py", "exec"), names)
    over = names["mesh"]()
    found = tuple(
        names["shardings"](name, tree, over) for name, tree in zip(("state", "batch"), arguments, strict=True)
    )
    assert found == plan.shardings(over)[0]
    assert "autopar" not in {
        line.split()[1] for line in plan.partition_specs().splitlines() if line.startswith("import ")
    }


def test_a_loaded_plan_knows_paths(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = autopar.load_plan(tmp_path / "plan.json")
    found = loaded.shardings(mesh())
    assert found["batch['x']"] == plan.shardings(mesh())[0][1]["x"]
    assert loaded.partition_specs() == plan.partition_specs()


def test_stages_have_shardings_each(arguments):
    options = autopar.Options(stages=2, microbatches=4, mesh=(4,), strategy="fsdp")
    plan = autopar.plan(train_step, *arguments, cluster="cpu:8", options=options)
    names = {}
    exec(compile(plan.partition_specs(), "specs.py", "exec"), names)
    kept = [plan.shardings(names["mesh"](s), stage=s) for s in range(2)]
    for s, found in enumerate(kept):
        assert found and all(names["spec"](s, path) == sharding.spec for path, sharding in found.items())
        assert {d.id for sharding in found.values() for d in sharding.device_set} == set(range(4 * s, 4 * s + 4))
    leaves = jax.tree_util.tree_flatten_with_path(arguments[0]["params"])[0]
    paths = {f"state['params']{jax.tree_util.keystr(path)}" for path, _ in leaves}
    assert paths <= set(kept[0]) | set(kept[1])
    with refused(autopar.PlanError, "2 stages", "own devices", r"stage=0"):
        plan.shardings(mesh())
    with refused(autopar.PlanError, "no stage 2", "2 stages, counted from 0"):
        plan.shardings(mesh((4,)), stage=2)
    with refused(autopar.PlanError, "stage 1", r"axes \{'x': 4\}", "found"):
        plan.shardings(mesh(), stage=1)


def test_graphs_and_traces(plan):
    assert plan.stage_graph().startswith("flowchart LR\n") and plan.stage_graph("graphviz").startswith("digraph plan {")
    with refused(autopar.OptionError, "'mermiad'", "did you mean 'mermaid'"):
        plan.stage_graph("mermiad")
    with refused(autopar.PlanError, "no stage 0", "no stages"):
        plan.shardings(mesh(), stage=0)
    assert json.loads(plan.simulate().perfetto_text())["traceEvents"]
