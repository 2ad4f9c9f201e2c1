"""What cannot be planned for, or run on, islands of unlike devices."""

import dataclasses

import pytest

import autopar
from autopar.plan import from_json, to_json
from tests.api.pipelines import STATE, X, Y, step
from tests.bad_input.steps import refused

MIXED = "v100-16gb:4+h100:2"


def asked(cluster=MIXED, **options):
    return autopar.plan(step, STATE, X, Y, cluster=cluster, options=autopar.Options(**options))


@pytest.mark.parametrize("options", [{}, {"microbatches": 4}, {"microbatches": "auto"}, {"stages": 1}, {"mesh": (6,)}])
def test_no_stage_reaches_over_islands(options):
    with refused(
        autopar.ClusterError, "'v100-16gb:4\\+h100:2' has 2 islands", "v100-16gb:4, h100:2", "equal devices only",
        "max_stages=2", "one of the islands alone",
    ):  # fmt: skip
        asked(**options)


def test_equal_stages_that_do_not_fill_the_islands():
    with refused(
        autopar.OptionError, r"2 equal stages do not divide the 4 \+ 2 devices", "all on one island", "Ask for 3, 6",
        "max_stages=2",
    ):  # fmt: skip
        asked(microbatches=4, stages=2)
    with refused(autopar.OptionError, r"the 5 \+ 3 devices", "Ask for 8 stages"):
        asked("cpu:5+cpu:3", microbatches=4, stages=4)


def test_a_mesh_that_no_island_has():
    with refused(autopar.OptionError, "takes 6 devices, but a stage can have 1, 2, 4 of cluster 'v100"):
        asked(microbatches=4, max_stages=2, mesh=(6,))


def test_a_stage_on_two_islands():
    plan = asked("cpu:4+cpu:4", microbatches=4, stages=2)
    stages = (dataclasses.replace(plan.stages[0], devices=(2, 6)), plan.stages[1])
    with refused(autopar.PlanError, "stage 0 has devices 2 to 5, which lie on two islands"):
        from_json(to_json(dataclasses.replace(plan, stages=stages)), "file")
    stages = (dataclasses.replace(plan.stages[0], devices=(8, 12)), plan.stages[1])
    with refused(autopar.AutoparError, "device 8 is not on cluster"):
        from_json(to_json(dataclasses.replace(plan, stages=stages)), "file")


def test_unknown_devices():
    with refused(autopar.ClusterError, r"'cpu:4\+gpu:4' joins islands", "'gpu:4'", "Known:"):
        asked("cpu:4+gpu:4", microbatches=4, max_stages=2)


def test_ray_does_not_know_one_memory_from_another():
    options = autopar.Options(microbatches=4, max_stages=2)
    with refused(autopar.ClusterError, "v100-16gb, v100-32gb", "of one type", "runtime='local'"):
        autopar.compile(step, STATE, X, Y, cluster="v100-16gb:4+v100-32gb:4", options=options, runtime="ray")


def test_more_devices_than_present():
    with refused(autopar.ClusterError, r"'cpu:8\+cpu:8' has 16 devices", "jax sees 8"):
        autopar.compile(step, STATE, X, Y, cluster="cpu:8+cpu:8", options=autopar.Options(max_stages=2))
