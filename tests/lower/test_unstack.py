"""A step with its stacked layers in chunks computes what the step computes."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from autopar.lower import cut_parts, join_parts, unstacked
from benchmarks._steps import STEPS
from tests.lower.stacked import (
    BATCH,
    CASES,
    WIDTH,
    Case,
    batch,
    head,
    layer,
    loss_of,
    run_flat,
    run_plain,
    run_unstacked,
    runner,
    stack,
    trained,
    worst_error,
)  # fmt: skip

LAYERS = 4


@pytest.mark.parametrize("name", CASES)
def test_in_two_chunks(name):
    case = CASES[name](LAYERS)
    found = unstacked(case.traced, 2)
    assert worst_error(run_unstacked(case, found), run_plain(case)) <= 1e-12
    check_graph(case, found)


@pytest.mark.parametrize("name", ["inference", "orthogonal", "per-layer", "shared"])
def test_a_chunk_per_layer(name):
    case = CASES[name](LAYERS)
    found = unstacked(case.traced, LAYERS)
    assert worst_error(run_unstacked(case, found), run_plain(case)) <= 1e-12
    check_graph(case, found)


def test_gpt():
    training = STEPS["gpt-scan"]()
    case = Case(training.step, training.state, training.batch)
    found = unstacked(case.traced, 2)
    assert worst_error(run_unstacked(case, found), run_plain(case)) <= 1e-12
    check_graph(case, found)


def test_one_chunk_is_the_step():
    case = CASES["adamw"](2)
    found = unstacked(case.traced, 1)
    assert found.traced is case.traced
    assert worst_error(run_unstacked(case, found), run_plain(case)) == 0


def check_graph(case, found):
    """Every scan over layers is there once per chunk, nothing is joined, and every op stands at the user's line."""
    before, after = case.traced.step.graph, found.traced.step.graph
    chunks = found.chunks

    def scans(graph):
        return Counter((op.loop.length, op.where.phase) for op in graph.ops if op.primitive == "scan")

    expected = Counter()
    for (length, phase), count in scans(before).items():
        over_layers = length % LAYERS == 0 or length == chunks == 2
        expected[length // chunks if over_layers else length, phase] += (
            count * chunks if over_layers or phase == "update" else count
        )
    found_scans = scans(after)
    assert found_scans.keys() == expected.keys()
    # At most one more per chunk, for what depends on no carry.
    assert all(n <= found_scans[key] <= 2 * n for key, n in expected.items())
    joins = [sum(op.primitive == "concatenate" for op in graph.walk()) for graph in (before, after)]
    assert joins[0] == joins[1]
    places = {op.where for op in before.walk()}
    assert {op.where for op in after.walk()} <= places


def test_names_and_roles():
    case = CASES["adamw"](LAYERS)
    found = unstacked(case.traced, 2)
    step, paths = found.traced.step, found.traced.in_paths
    assert paths == tuple(step.graph.values[v].name for v in step.graph.inputs)
    assert "state['params']['layers']['w1'][0:2]" in paths
    assert "state['params']['layers']['w1'][2:4]" in paths
    assert "state['params']['out']" in paths
    assert all(paths[i].removeprefix("state") == found.traced.out_paths[o].removeprefix("result[0]")
               for i, o in step.state)  # fmt: skip
    assert [paths[i] for i in step.batch] == ["batch['x']", "batch['y']"]
    assert {paths[i] for i in step.donated} == {paths[i] for i, _ in step.state}
    assert step.name == "train_step"


def test_a_name_tells_which_dim_is_cut():
    found = unstacked(CASES["other-dim"](LAYERS).traced, 2)
    assert "state['params']['layers']['w1'][:, :, 2:4]" in found.traced.in_paths


def test_parts_there_and_back():
    case = CASES["other-dim"](LAYERS)
    found = unstacked(case.traced, 4)
    leaves = jax.tree.leaves((case.state, case.batch(0)))
    assert worst_error(join_parts(found.inputs, cut_parts(found.inputs, leaves)), leaves) == 0


def test_slices_read_the_parts_that_they_overlap():
    def metrics(params, grads, aux):
        w = params["layers"]["w1"]
        looked_up = w[jnp.argsort(jnp.abs(grads["layers"]["b"]).sum(1))[1:]]
        return {"a": w[0], "b": w[-1], "c": w[1:3], "d": w[3:0:-2], "e": w[1:4:2], "f": looked_up}

    def loss(params, batch, key):
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), batch["x"], params["layers"])
        return loss_of(params, x, batch["y"]), None

    case = trained({"layers": stack(LAYERS), **head()}, loss, metrics=metrics)
    for chunks in (2, 4):
        assert worst_error(run_unstacked(case, unstacked(case.traced, chunks)), run_plain(case)) <= 1e-12


def test_captured_arrays_and_random_keys_in_the_stack():
    mask = jnp.arange(LAYERS * WIDTH).reshape(LAYERS, WIDTH) % 3 > 0

    def predict(params, batch):
        keys = jax.random.split(jax.random.key(3), LAYERS)

        def body(x, xs):
            p, m, key, i = xs
            return layer(p, x) * m + i * jax.random.normal(key, (BATCH, 1, WIDTH)), key

        x, keys = jax.lax.scan(body, batch["x"], (params, mask, keys, jnp.arange(LAYERS)))
        return {}, (x, jax.random.key_data(keys))

    case = Case(predict, stack(LAYERS), batch)
    assert worst_error(run_unstacked(case, unstacked(case.traced, 2)), run_plain(case)) <= 1e-12


def test_a_step_in_chunks_can_be_cut_again():
    case = CASES["shared"](LAYERS)
    once = unstacked(case.traced, 2)
    twice = unstacked(once.traced, 2)
    assert twice.traced.step.graph.fingerprint != once.traced.step.graph.fingerprint
    step = runner(twice.traced)

    def inner(*flat):
        return join_parts(twice.outputs, step(*cut_parts(twice.inputs, flat)))

    assert worst_error(run_flat(case, once, inner), run_plain(case)) <= 1e-12
