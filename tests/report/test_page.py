import dataclasses
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from autopar.mesh import Cluster
from autopar.plan import Certificate, RunnerUp
from autopar.report import plan_text, print_plan
from tests.report.plans import PARAMS, WHOLE, collective, decoder, leaf

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name, plan", [("decoder", decoder(12)), ("alone", decoder(1, collectives=[], runners_up=()))])
def test_golden(name, plan, golden):
    golden(GOLDENS / f"{name}.txt", plan_text(plan))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_asked(width):
    plan = decoder(12, warnings=("word " * 60,))
    long = collective("all-gather", "x", 5, "S0->R", where="a/very/long/scope/" * 12)
    plan = dataclasses.replace(plan, collectives=(*plan.collectives, long))
    assert max(map(len, plan_text(plan, width).splitlines())) <= width


def test_depth_does_not_lengthen_the_page():
    assert plan_text(decoder(96)).count("\n") == plan_text(decoder(12)).count("\n")


def test_layers_that_differ_everywhere_do_not_either():
    def page(layers):
        arrays = [a for i in range(layers) for a in _odd_layer(i)]
        records = [collective("all-gather", "x", 5, "S0->R", where=f"{chr(97 + i % 26)}{i}") for i in range(layers)]
        slow = tuple(RunnerUp((i,), 1.0 + i, 1, "optimal") for i in range(layers))
        warnings = tuple(f"layer {i}: {'abcdefghijklm'[i % 13]}" for i in range(layers))
        return plan_text(decoder(0, arrays, records, runners_up=slow, warnings=warnings))

    assert page(96).count("\n") <= page(30).count("\n") + 2


def _odd_layer(i):
    return decoder(1, arrays=[dataclasses.replace(a, shape=(64 + 8 * i, 8)) for a in _weights(i)]).arguments[:3]


def _weights(i):
    return [a for a in decoder(i + 1).arguments if f"[{i}]['w1']" in a.name]


def test_every_byte_and_second_is_accounted_for():
    text = plan_text(decoder(12))
    assert _row(text, "  reduce-scatter").split()[1:6] == ["x", "data", "parallel", "24", "768"]
    assert _row(text, "layers[*].w1").split()[1:3] == ["x12", "64x256"]


def test_the_page_says_in_how_many_micro_batches():
    def said(**changes):
        return [line.strip() for line in plan_text(decoder(12, **changes)).splitlines() if "micro-batch" in line]

    assert said() == []
    sentence, line = said(microbatches=4)
    assert sentence.startswith("4 micro-batches, data parallel 2 (x), ")
    assert line == "batch   in 4 micro-batches, one after the other"
    assert "is computed over each alone" in plan_text(decoder(12, microbatches=4, per_microbatch=True))


def _row(text, word):
    return next(line for line in text.splitlines() if word in line)


def test_equal_warnings_are_said_once():
    warnings = tuple(f"state.params[{i}] of shape (7, {i}): kept whole." for i in range(96))
    text = plan_text(decoder(warnings=warnings))
    assert text.count("kept whole") == 1
    assert "(and 95 alike)" in text


def test_constants_have_no_names_and_variables_of_nnx_no_leaf():
    arrays = [leaf(f"{PARAMS}.layers[{i}].kernel.value", (8, 8), WHOLE, "parameter") for i in range(3)]
    arrays += [leaf(f"{PARAMS}.head.value", (8,), WHOLE, "parameter")]
    arrays += [leaf("", (5,), WHOLE, "constant"), leaf("", (5,), WHOLE, "constant")]
    text = plan_text(decoder(0, arrays, []))
    assert _row(text, "layers[*].kernel").split() == ["layers[*].kernel", "x3", "8x8", "whole", "768", "B"]
    assert _row(text, "(captured)").split() == ["(captured)", "x2", "f32[5]", "whole", "40", "B"]
    assert ".value" not in text


def test_unproven_and_given_plans_say_so():
    late = Certificate("time limit", 1.0, 0.0, 1.0, "highs")
    assert "time limit on this mesh shape: no bound was proven" in plan_text(decoder(certificate=late))
    given = Certificate("given", 1.0, 0.0, 1.0, "none")
    assert "this plan was given, not searched" in plan_text(decoder(certificate=given))


def test_a_bound_of_a_pruned_program_says_so():
    pruned = Certificate("optimal", 1.0, 1.0, 0.0, "highs", pruned=True)
    text = plan_text(decoder(certificate=pruned))
    assert "optimal among the choices kept: within 0% of the proven bound 1 s" in text
    assert "(choices pruned)" in text


def test_unlimited_memory_has_no_share():
    cluster = Cluster.uniform(8, math.inf, math.inf, 1.0, 1.0).to_dict()
    assert "300 MiB at the peak of each device\n" in plan_text(decoder(cluster=cluster))


def test_plain_where_there_is_no_terminal_and_ascii_where_there_is_no_unicode():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print_plan(decoder(), Console(file=file, width=80))
    assert b"\x1b" not in raw.getvalue()
    assert b"data parallel 2 (x)" in raw.getvalue()


def test_colour_where_asked():
    file = io.StringIO()
    print_plan(decoder(), Console(file=file, force_terminal=True, color_system="standard"))
    assert "\x1b[" in file.getvalue()
