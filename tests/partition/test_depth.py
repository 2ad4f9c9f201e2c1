"""Which scans run over stacked layers, and what lies in chunks with them."""

import jax
import jax.numpy as jnp
import optax
import pytest

from autopar.errors import PlanError
from autopar.partition import SAME, cut_depth, stacked_lengths
from tests.lower.stacked import CASES, CLIPPED, Case, batch, head, layer, loss_of, stack, trained


def parts_of(step, chunks):
    """Per input with parts: its name, and the dim along which it is cut."""
    names = [step.graph.values[v].name for v in step.graph.inputs]
    return {names[p.index]: p.dim for p in cut_depth(step, chunks).inputs if p.start is not None}


def single(tx=CLIPPED, extra=lambda params: 0.0):
    def loss(params, batch, key):
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), batch["x"], params["layers"])
        return loss_of(params, x, batch["y"]) + extra(params), None

    return trained({"layers": stack(4), **head()}, loss, tx).traced.step


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("adamw", (4,)), ("encoder-decoder", (4, 8)), ("over-time", (4,)), ("inference", (4,)), ("other-dim", (4,))],
)
def test_lengths_of_stacks(name, lengths):
    assert stacked_lengths(CASES[name](4).traced.step) == lengths


def test_a_scan_over_time_is_no_stack():
    step = CASES["over-time"](4).traced.step
    depth = cut_depth(step, 2)
    scans = [op for op in step.graph.ops if op.loop is not None]
    assert sorted((op.loop.length, op.id in depth.chains) for op in scans) == [
        (4, True), (4, True), (6, False), (6, False)
    ]  # fmt: skip
    assert not any("times" in name for name in parts_of(step, 2))


def test_optimizer_follows_the_stacks():
    found = parts_of(CASES["averaged"](4).traced.step, 2)
    leaves = {"w1", "w2", "b", "scale"}
    # Parameters, two moments, the average of updates, and what is accumulated.
    assert len(found) == 5 * len(leaves)
    assert set(found.values()) == {0}
    assert all(any(f"['layers']['{leaf}']" in name for leaf in leaves) for name in found)


def test_factored_moments_follow_the_stacks():
    found = parts_of(CASES["adafactor"](4).traced.step, 4)
    assert {name.split(".")[-1] for name in found if "w1" in name and "opt" in name} >= {
        "v_row['layers']['w1']",
        "v_col['layers']['w1']",
    }


def test_stacks_along_another_dim():
    found = parts_of(CASES["other-dim"](4).traced.step, 2)
    assert {name: dim for name, dim in found.items() if "params" in name} == {
        "state['params']['layers']['b']": 1,
        "state['params']['layers']['scale']": 1,
        "state['params']['layers']['w1']": 2,
        "state['params']['layers']['w2']": 2,
    }


def test_parts_cover_every_leaf_once_in_order():
    step = CASES["encoder-decoder"](4).traced.step
    for chunks in (2, 4):
        depth = cut_depth(step, chunks)
        for ids, parts in ((step.graph.inputs, depth.inputs), (step.graph.outputs, depth.outputs)):
            assert [p.index for p in parts] == sorted(p.index for p in parts)
            for index, v in enumerate(ids):
                mine = [p for p in parts if p.index == index]
                if mine[0].start is None:
                    assert len(mine) == 1
                    continue
                size = step.graph.values[v].shape[mine[0].dim]
                assert [(p.start, p.stop) for p in mine] == [
                    (k * size // chunks, (k + 1) * size // chunks) for k in range(chunks)
                ]


def test_state_and_successor_come_in_the_same_parts():
    step = CASES["lamb"](4).traced.step
    depth = cut_depth(step, 2)
    for i, o in step.state:
        before = [(p.start, p.stop, p.dim) for p in depth.inputs if p.index == i]
        assert before == [(p.start, p.stop, p.dim) for p in depth.outputs if p.index == o]


def test_data_and_keys_stay_whole():
    case = CASES["dropout"](4)
    depth = cut_depth(case.traced.step, 2)
    values = case.traced.step.graph
    assert all(depth.places[values.inputs[i]] == SAME for i in case.traced.step.batch)


def test_chunks_that_do_not_divide():
    with pytest.raises(PlanError, match=r"stacks of 4 and 8 layers .*counts that would do: 1, 2, 4\."):
        cut_depth(CASES["encoder-decoder"](4).traced.step, 8)
    with pytest.raises(PlanError, match=r"^3 chunks .*stacked\.py:\d+.*would do: 1, 2, 4\."):
        cut_depth(CASES["adamw"](4).traced.step, 3)
    with pytest.raises(PlanError, match="0 chunks"):
        cut_depth(CASES["adamw"](4).traced.step, 0)


def test_no_stacks():
    def loss(params, batch, key):
        x = batch["x"]
        for i in range(2):
            x = layer(jax.tree.map(lambda p, i=i: p[i], params["layers"]), x)
        return loss_of(params, x, batch["y"]), None

    step = trained({"layers": stack(2), **head()}, loss).traced.step
    assert stacked_lengths(step) == ()
    with pytest.raises(PlanError, match=r"no jax\.lax\.scan over parameters"):
        cut_depth(step, 2)


def test_a_stack_read_whole_is_refused():
    step = single(extra=lambda p: jnp.sort(p["layers"]["b"].ravel())[-3:].sum())
    with pytest.raises(PlanError, match=r"\['layers'\]\['b'\] is scanned over, but sort at .*test_depth\.py:\d+"):
        cut_depth(step, 2)


def test_a_moment_read_whole_stays_whole():
    def clipped(updates, state, params=None):
        # By the median, which no sum over layers tells.
        scaled = jax.tree.map(lambda m, g: g / (1 + jnp.sort(m.ravel())[m.size // 2] ** 2), state, updates)
        return scaled, jax.tree.map(lambda m, g: 0.9 * m + g, state, updates)

    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    step = single(optax.chain(optax.GradientTransformation(zeros, clipped), optax.scale(-0.1)))
    found = parts_of(step, 2)
    assert len(found) == 4
    assert all("params" in name for name in found)


def test_a_slice_of_a_stack_is_no_reading_of_the_whole():
    step = single(extra=lambda p: p["layers"]["w1"][2].sum() ** 2 + p["layers"]["b"][1:4:2].sum() ** 2)
    assert "state['params']['layers']['w1']" in parts_of(step, 2)


def test_parameters_that_are_looked_up_by_a_computed_number():
    def predict(params, batch):
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), batch["x"], params)
        return {}, x + params["scale"][batch["y"] % 4][:, None]

    step = Case(predict, stack(4), batch).traced.step
    assert "params['scale']" in parts_of(step, 4)
