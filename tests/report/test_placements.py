"""Layouts in the words of models."""

import dataclasses

import pytest

from autopar.report.dimensions import heads_dim, vocabulary_dim
from autopar.report.paths import braced
from autopar.report.placements import placed
from tests.report.plans import PARAMS, WHOLE, collective, decoder, leaf, trained

EXCHANGE = collective("all-to-all", "y", 100, "S0->S1")


def words(arrays, collectives=(), **more):
    plan = decoder(0, arrays, list(collectives))
    return {p.argument.name.removeprefix(PARAMS): (p.words, p.state) for p in placed(plan, **more)}


@pytest.mark.parametrize(
    "name, shape, layout, said",
    [
        ("['attn']['wq']", (64, 8, 16), (-1, 1), "by heads over y"),
        ("['attn']['wo']", (8, 16, 64), (-1, 0), "by heads over y"),
        ("['attn']['wo']", (8, 16, 64), (-1, 1), "by dim 1 over y"),
        ("['attn']['wq']", (12, 64, 8, 16), (-1, 2), "by heads over y"),  # stacked layers
        ("['attn']['qkv']", (64, 3, 8, 16), (-1, 1), "by dim 1 over y"),  # no telling
        ("['attn']['w']", (64, 256), (-1, 1), "by columns over y"),
        ("['moe']['w1']", (8, 64, 256), (-1, 0), "by experts over y"),
        ("['ffn']", (8, 64, 256), (-1, 0), "by dim 0 over y"),
        ("['wte']", (256, 64), (-1, 0), "by vocabulary over y"),
        ("['wte']", (256, 64), (-1, 1), "by columns over y"),
        ("['pos_embed']", (256, 64), (-1, 0), "by rows over y"),
        ("['w']", (64, 256), (0, 1), "by rows over x, by columns over y"),
        ("['w']", (64, 256), (0, 0), "by rows over x and y"),
        ("['b']", (64,), (-1, 0), "split over y"),
        ("['w']", (64, 256), WHOLE, "whole"),
    ],
)
def test_dims_are_named_where_names_and_shapes_leave_no_doubt(name, shape, layout, said):
    assert words(trained(name, shape, layout))[name] == (said, "same")


def test_experts_are_known_by_their_exchange_and_heads_are_no_experts():
    both = [*trained("['ffn']", (8, 64, 256), (-1, 0)), *trained("['attn']['wo']", (8, 16, 64), (-1, 0))]
    found = words(both, [EXCHANGE])
    assert found["['ffn']"][0] == "by experts over y" and found["['attn']['wo']"][0] == "by heads over y"


def test_biases_of_heads_are_known_by_their_weights():
    weight, bias = leaf(f"{PARAMS}['attn']['wq']", (64, 8, 16), (-1, 1), "parameter"), (8, 16)
    arrays = [weight, leaf(f"{PARAMS}['attn']['bq']", bias, (-1, 0), "parameter")]
    assert words(arrays)["['attn']['bq']"] == ("by heads over y", "")
    assert words(arrays[1:])["['attn']['bq']"] == ("by rows over y", "")


def test_what_is_gathered_for_use_is_zero_3_and_state_that_is_split_alone_is_zero_1_or_2():
    gather = collective("all-gather", "x", 64 * 256 * 4, "S0->R")
    assert words(trained("['w']", (64, 256), (0, -1)), [gather])["['w']"] == ("ZeRO-3 over x", "same")
    scattered = collective("reduce-scatter", "x", 99, "P(sum)->S0", "update")
    split_alone = trained("['w']", (64, 256), (-1, 1), (0, 1))
    assert words(split_alone)["['w']"] == ("by columns over y", "ZeRO-1 over x")
    assert words(split_alone, [scattered])["['w']"][1] == "ZeRO-2 over x"
    otherwise = trained("['w']", (64, 256), (-1, 1), (-1, 0))
    assert words(otherwise)["['w']"] == ("by columns over y", "rows over y")


def test_sizes_where_they_are_asked_for():
    arrays = trained("['w']", (64, 256), (-1, 1), (0, 1))
    assert words(arrays, sizes=True)["['w']"] == ("by columns over y=4", "ZeRO-1 over x=2")


def test_the_batch_is_split_by_examples_or_positions():
    plan = decoder(1)
    turned = [dataclasses.replace(a, layout=(0, 1)) if a.name == "batch['tokens']" else a for a in plan.arguments]
    found = {p.argument.name: p.words for p in placed(dataclasses.replace(plan, arguments=tuple(turned)))}
    assert found["batch['tokens']"] == "by examples over x, by positions over y"
    assert found["batch['targets']"] == "by examples over x"


def test_every_byte_on_a_device_is_in_one_row():
    plan = decoder(12)
    local = {"w1": 64 * 256, "w2": 64 * 256, "scale": 64 * 3}
    rows = {p.argument.name: p.local_bytes for p in placed(plan)}
    assert rows[f"{PARAMS}['layers'][3]['w1']"] == 4 * (local["w1"] // 4 + 2 * local["w1"] // 8)
    assert len(rows) == 12 * 3 + 1 + 3


def test_dims_of_other_arrays_have_no_names():
    plain = leaf("state.params['mlp']['w1']", (64, 8, 16), (-1, 1), "parameter")
    assert heads_dim(plain) is None and vocabulary_dim(plain) is None
    assert heads_dim(dataclasses.replace(plain, name="x.attn", kind="batch")) is None


def test_names_in_braces():
    assert (
        braced(["layers[*].attn.wk", "layers[*].attn.wq", "layers[*].mlp.b"]) == "layers[*].{attn.wk, attn.wq, mlp.b}"
    )
    assert braced(["a", "b"]) == "{a, b}"
