import dataclasses

import pytest

from autopar.mesh import Cluster
from autopar.plan import MeshAxis
from autopar.report import sentence
from autopar.report.paths import dotted, keys, merged, repeated, shared_prefix
from autopar.report.places import axes_place, level_names
from autopar.report.words import axis_uses, parameter_of
from autopar.sharding.words import layout_text
from tests.report.plans import PARAMS, WHOLE, collective, decoder, leaf, stacked, trained

GATHERED = collective("all-gather", "x", 64 * 256 * 4, "S0->R")


def test_megatron_with_zero_2():
    assert sentence(decoder()) == (
        "data parallel 2 (x), tensor parallel 4 (y; 80% of the parameters), ZeRO-2 over 2 (x)"
    )


def test_places_and_micro_batches_are_said():
    spread = decoder(cluster=Cluster.parse("h100:2x4").to_dict(), microbatches=8)
    assert sentence(spread).startswith(
        "8 micro-batches, data parallel 2 across hosts (x), tensor parallel 4 in the host (y;"
    )
    assert sentence(spread).endswith("ZeRO-2 over 2 (x)")  # where x is, is known by then


@pytest.mark.parametrize(
    "cluster, mesh, axes, place",
    [
        ("cpu:8", (2, 4), "x", ""),
        ("h100:2x4", (2, 4), "y", "in the host"),
        ("h100:2x4", (2, 4), "x", "across hosts"),
        ("h100:2x4", (2, 4), "xy", "across hosts"),
        ("h100:2x4", (4, 2), "x", "across hosts"),
        ("h100:2x2x2:metro", (2, 4), "x", "across sites"),
        ("h100:2x2x2:metro", (4, 2), "y", "in the host"),
    ],
)
def test_where_the_devices_of_an_axis_are(cluster, mesh, axes, place):
    found = Cluster.parse(cluster)
    plan = decoder(cluster=found.to_dict(), mesh=tuple(MeshAxis(n, s) for n, s in zip("xy", mesh, strict=True)))
    assert axes_place(plan, tuple(axes), level_names(found)) == place


def test_zero_1_where_gradients_are_reduced_whole():
    plan = decoder(collectives=[collective("all-reduce", "x", 32768, "P(sum)->R", "backward")])
    assert sentence(plan).endswith(", ZeRO-1 over 2 (x)")


def test_plain_data_parallel_says_nothing_else():
    plan = decoder(arrays=trained("['w']", (64, 256), WHOLE), collectives=[])
    assert sentence(plan) == "data parallel 2 (x), nothing split over 4 (y)"


@pytest.mark.parametrize("cast", [1, 2])
def test_fully_sharded_is_told_from_tensor_parallel_by_the_gather_of_the_parameter(cast):
    arrays = trained("['w']", (64, 256), (0, -1))
    gather = collective("all-gather", "x", 64 * 256 * 4 // cast, "S0->R")
    assert "FSDP (ZeRO-3) over 2 (x)" in sentence(decoder(0, arrays, [gather]))
    activations = collective("all-gather", "x", 999, "S0->R")
    assert "tensor parallel 2 (x)" in sentence(decoder(0, arrays, [activations]))


def test_gathering_an_updated_parameter_is_not_fsdp():
    arrays = trained("['w']", (64, 256), (0, -1))
    late = dataclasses.replace(GATHERED, phase="update")
    assert "FSDP" not in sentence(decoder(0, arrays, [late]))


def test_parameter_split_over_two_axes_and_gathered_over_one():
    arrays = trained("['w']", (64, 256), (0, 1))
    gather = collective("all-gather", "x", 64 * 256 * 4 // 4, "S0->R")
    assert sentence(decoder(0, arrays, [gather])) == (
        "data parallel 2 (x), tensor parallel 4 (y), FSDP (ZeRO-3) over 2 (x)"
    )


def test_experts_are_known_by_name_or_by_their_exchange():
    exchange = collective("all-to-all", "y", 100, "S0->S1")
    named = decoder(0, trained("['moe']['w1']", (8, 64, 256), (-1, 0)), [])
    fed = decoder(0, trained("['ffn']", (8, 64, 256), (-1, 0)), [exchange])
    heads = decoder(0, trained("['attn']", (8, 64, 256), (-1, 0)), [exchange])
    assert sentence(named).endswith("expert parallel 4 (y)")
    assert sentence(fed).endswith("expert parallel 4 (y; all-to-all)")
    assert "tensor parallel 4 (y)" in sentence(heads)


def test_small_shares_are_left_out_and_partial_ones_are_said():
    assert "tensor parallel" not in sentence(decoder(0, stacked(0.05), []))
    assert "tensor parallel 2 (x; 50% of the parameters)" in sentence(decoder(0, stacked(0.5), []))
    assert sentence(decoder(0, stacked(0.95), [])).count("%") == 0


def test_batch_sliced_inside_the_step():
    whole = leaf("batch['x']", (16, 32), WHOLE, "batch")
    arrays = [*trained("['w']", (64, 256), WHOLE)]
    plan = decoder(0, arrays, [collective("all-reduce", "y", 64 * 256 * 4, "P(sum)->R", "backward")])
    plan = dataclasses.replace(plan, arguments=(*arrays, whole))
    assert "batch sliced inside the step, gradients summed over 4 (y)" in sentence(plan)
    assert "data parallel" not in sentence(plan)


def test_batch_arrays_that_enter_whole_do_not_dilute_those_that_enter_split():
    plan = decoder()
    whole = [dataclasses.replace(a, layout=WHOLE) if "tokens" in a.name else a for a in plan.arguments]
    assert "data parallel 2 (x), " in sentence(dataclasses.replace(plan, arguments=tuple(whole)))
    by_columns = [dataclasses.replace(a, layout=(1, -1)) if "tokens" in a.name else a for a in plan.arguments]
    said = sentence(dataclasses.replace(plan, arguments=tuple(by_columns)))
    assert "data parallel 2 (x; 50% of the split batch)" in said
    assert "batch split along a later dim over 2 (x; 50% of the split batch)" in said


def test_one_device_and_axes_of_size_one():
    alone = decoder(mesh=(MeshAxis("x", 1), MeshAxis("y", 1)))
    assert sentence(alone) == "one device: nothing is split"
    assert [u.name for u in axis_uses(decoder(mesh=(MeshAxis("x", 1), MeshAxis("y", 4))))] == ["y"]


def test_layouts_in_words():
    axes = ("x", "y")
    assert layout_text((0, 0), 2, axes) == "rows over x and y"
    assert layout_text((-1, 0), 1, axes) == "split over y"
    assert layout_text((-2, 1), 2, axes) == "columns over y, partial over x"
    assert layout_text((), 0, ()) == "whole"


def test_optimizer_leaves_find_their_parameters():
    owner = parameter_of(decoder(1))
    assert owner["state.opt_state[1][0].mu['layers'][0]['w1']"].name == f"{PARAMS}['layers'][0]['w1']"
    assert len(owner) == 8  # mu and nu of four parameters
    factored = leaf("state.opt_state.v_row['layers'][0]['w1']", (64,), WHOLE, "optimizer")
    plan = decoder(1)
    plan = dataclasses.replace(plan, arguments=(*plan.arguments, factored))
    assert factored.name not in parameter_of(plan)


def test_paths():
    assert keys("""a["it's"][0]['b.c'].d[(1, 2)]""") == ("a", "it's", "[0]", "b.c", "d", "[(1, 2)]")
    assert dotted(keys("x['a'][3].b")) == "x.a[3].b"
    assert repeated("layers_10.w1") == "layers_*.w*"
    assert merged(["a[0].w1", "a[1].w1"]) == "a[*].w1"
    assert shared_prefix([("a", "b", "c"), ("a", "b", "d")]) == ("a", "b")
    assert shared_prefix([("a", "b")]) == ("a",)
    assert shared_prefix([]) == ()
