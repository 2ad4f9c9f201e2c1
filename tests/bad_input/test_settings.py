"""Clusters, options, meshes and hints that make no sense."""

import jax
import pytest

import autopar
from tests.bad_input.steps import STATE, X, Y, planned, refused, step


@pytest.mark.parametrize(
    "cluster, words",
    [
        ("h10:8", ("no device is called 'h10'", "did you mean 'h100' or 'h200'", "Known: .*cpu")),
        ("tpu:8", ("no device is called 'tpu'", "did you mean 'tpu-v")),
        ("cpu", ("no count", "write 'cpu:8'")),
        ("cpu:0", ("count of 0", "1 or more")),
        ("cpu:-3", ("counts '-3'", "write 'cpu:8'")),
        ("h100:3x16", ("16 devices per host", "at most 8")),
        (8, ("named by text such as 'h100:16x8'", "not by 8")),
    ],
)
def test_unknown_clusters(cluster, words):
    with refused(autopar.ClusterError, *words):
        autopar.parallelize(step, cluster=cluster)  # at once, not at the first call
    with refused(autopar.ClusterError, *words):
        planned(cluster=cluster)


def test_more_devices_than_there_are():
    lines = []
    spread = autopar.parallelize(step, cluster="cpu:16", progress=lines.append)
    words = ("cluster 'cpu:16' has 16 devices", "jax sees 8 cpu devices", "jax_num_cpu_devices")
    with refused(autopar.ClusterError, *words):
        spread(STATE, X, Y)
    assert not lines  # said before the search, not after it
    plan = planned(cluster="cpu:16", options=autopar.Options(mesh=(16,)))
    with refused(autopar.ClusterError, "the plan is for 16 devices", "jax sees 8 cpu devices"):
        autopar.compile(step, STATE, X, Y, plan=plan)
    with refused(autopar.ClusterError, "has 8 devices", r"devices=\.\.\. holds 4 cpu devices", "Pass 8"):
        autopar.compile(step, STATE, X, Y, cluster="cpu:8", devices=jax.devices()[:4])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"strategy": "fspd"}, ("unknown strategy 'fspd'", "did you mean 'fsdp'", "Known: auto")),
        ({"strategy": None}, ("unknown strategy None",)),
        ({"solver": "higs"}, ("unknown solver 'higs'", "did you mean 'highs'")),
        ({"backend": "gspdm"}, ("unknown backend 'gspdm'", "did you mean 'gspmd'")),
        ({"mesh": 8}, ("mesh must be a tuple of positive ints", "found 8")),
        ({"mesh": "2x4"}, ("such as \\(2, 4\\)", "found '2x4'")),
        ({"mesh": (2, -4)}, ("positive ints", r"\(2, -4\)")),
        ({"mesh": (True, 8)}, ("positive ints",)),
        ({"mesh": ()}, ("positive ints",)),
        ({"max_axes": 0}, ("max_axes", "from 1 to 4", "found 0")),
        ({"max_axes": 2.5}, ("max_axes", "found 2.5")),
        ({"memory_bytes": "8GiB"}, ("memory_bytes", r"16 \* 2\*\*30", "'8GiB'")),
        ({"memory_bytes": float("nan")}, ("memory_bytes", "nan")),
        ({"time_limit_s": 0}, ("time_limit_s", "positive number of seconds", "found 0")),
        ({"time_limit_s": None}, ("time_limit_s", "found None")),
        ({"mip_gap": 2}, ("mip_gap", "below 1", "found 2")),
        ({"microbatches": 0}, ("microbatches", "from 1 up", "found 0")),
        ({"microbatches": "4"}, ("microbatches", "whole number", "found '4'")),
        ({"microbatches": True}, ("microbatches", "found True")),
        ({"microbatches": 2.0}, ("microbatches", "found 2.0")),
        ({"per_microbatch": 1}, ("per_microbatch", "True or False", "found 1")),
        ({"divide_work": "no"}, ("divide_work", "True or False", "'no'")),
        ({"tie_above": -1}, ("tie_above", "found -1")),
        ({"prune_above": None}, ("prune_above", "found None")),
        ({"hints": ["w"]}, ("hint 'w' is not a pattern and what to do there, joined by ': '", "'wte: whole'")),
        ({"hints": [8]}, ("hints must map argument paths to layouts", r"\[8\]")),
        ({"hints": {"w": 0}}, ("hints must map",)),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, words):
    with refused(autopar.OptionError, *words):
        autopar.Options(**options)


def test_options_and_plans_of_another_kind():
    with refused(autopar.OptionError, r"autopar\.Options", r"found \{'mesh'"):
        planned(options={"mesh": (8,)})
    with refused(autopar.OptionError, "found 'plan.json'", r"autopar\.load_plan\(path\)"):
        autopar.parallelize(step, plan="plan.json")


def test_a_mesh_of_another_size():
    with refused(autopar.ClusterError, "mesh 3x2 has 6 devices", "'cpu:8' has 8", "product is 8"):
        planned(options=autopar.Options(mesh=(3, 2)))


def hinted(hints, **more):
    return planned(options=autopar.Options(hints=hints, **{"mesh": (8,), **more}))


@pytest.mark.parametrize(
    "hints, kind, words",
    [
        ({"stat['w']": "S0"}, autopar.OptionError, ("matches no argument", "did you mean 'state.w'", "Known")),
        ({"state*": "split"}, autopar.OptionError, ("'split' is not a layout", "S0 splits dim 0", "'S0,R'")),
        ({"x": "S5"}, autopar.InfeasibleError, ("x of shape \\(64, 16\\) cannot lie as 'S5'", "Possible: R; S0; S1")),
        ({"x": "S0,R"}, autopar.InfeasibleError, ("cannot lie as 'S0,R' on mesh 8", "Possible")),
    ],
)
def test_hints_that_cannot_hold(hints, kind, words):
    with refused(kind, "hint", *words):
        hinted(hints)


def test_hints_by_path_and_by_pattern():
    layouts = {a.name: a.layout for a in hinted({"state['w']": "S1", "[xy]": "S0"}).arguments}
    assert layouts["state['w']"] == (1,) and layouts["x"] == layouts["y"] == (0,)


@pytest.mark.parametrize(
    "text, words",
    [
        ("q d k d", ("has no '->'", "q d, k d -> q k")),
        ("q d -> q", ("'d' is in no result", "reduce=")),
        ("(q d -> q", ("Parentheses",)),
    ],
)
def test_malformed_rules(text, words):
    with refused(autopar.RuleError, "my_primitive", *words):
        autopar.register_rule("my_primitive", text)
