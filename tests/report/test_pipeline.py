import dataclasses
import math
from pathlib import Path

import pytest

from autopar.mesh import Cluster
from autopar.plan import MeshAxis
from autopar.report import plan_text, sentence
from autopar.report.drawing import drawing
from tests.report.plans import pipeline

GOLDENS = Path(__file__).parent / "goldens"


def test_golden(golden):
    golden(GOLDENS / "pipeline.txt", plan_text(pipeline()))


@pytest.mark.parametrize("schedule, name", [("1f1b", "1F1B"), ("gpipe", "GPipe"), ("zb-h1", "ZB-H1 (zero bubble)")])
def test_the_sentence_names_schedule_micro_batches_and_what_is_done_in_each_stage(schedule, name):
    assert sentence(pipeline(schedule)) == (
        f"2-stage {name}, 4 micro-batches, data parallel 2 in the host (x), tensor parallel 4 in the host (y), "
        "ZeRO-2 over 2 (x)"
    )


def test_stages_that_differ_are_said_apart():
    plan = pipeline()
    alone = dataclasses.replace(plan.stages[1].plan, mesh=(MeshAxis("x", 1),))
    stages = (plan.stages[0], dataclasses.replace(plan.stages[1], plan=alone))
    said = sentence(dataclasses.replace(plan, stages=stages))
    assert "; stage 0: data parallel 2 in the host (x), " in said and said.endswith("; stage 1: one device")
    three = dataclasses.replace(plan, stages=(stages[0], stages[1], stages[1]))
    assert sentence(three).endswith("; stages 1-2: one device")


def test_one_stage_is_no_pipeline_and_says_what_it_computes_again():
    plan = pipeline()
    one = dataclasses.replace(plan, stages=(dataclasses.replace(plan.stages[0], remat=("none", "full", "attention")),))
    said = sentence(one)
    assert "-stage" not in said and said.startswith("4 micro-batches, data parallel 2 in the host (x)")
    assert said.endswith(", recomputes 2 of 3 units")
    whole = dataclasses.replace(one, microbatches=1, stages=plan.stages[:1])
    assert sentence(whole).startswith("data parallel 2 in the host (x), ") and "recomputes" not in sentence(whole)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_no_line_is_wider_than_asked(width, schedule):
    assert max(map(len, plan_text(pipeline(schedule), width).splitlines())) <= width


def test_a_page_says_what_is_idle_and_what_is_held():
    text = plan_text(pipeline())
    assert "20.1 ms waiting (bubble 18%)" in text
    assert "holds  2, 1 micro-batches in flight, by stage" in text and "keeps  60 MiB on a device for each" in text
    assert "sends  4 MiB of activations on per micro-batch, 4 MiB of gradients back" in text
    assert "memory  360 MiB at the peak of stage 0" in text
    assert "have no stage" not in text
    assert "idle    8 of the cluster's 24 devices have no stage" in plan_text(pipeline(hosts=3))


def test_unlike_devices_are_named_stage_by_stage():
    plan = pipeline(cluster=Cluster.parse("v100-16gb:8+h100:8").to_dict())
    text = plan_text(plan)
    assert "type" in text and "; stage 0: data parallel 2 (x), " in " ".join(text.split())
    assert "on v100-16gb; stage 1: " in " ".join(text.split()) and sentence(plan).endswith(", on h100")
    rows = [line.split() for line in text.splitlines() if line.startswith(("  0 ", "  1 "))]
    assert [row[3] for row in rows[:2]] == ["v100-16gb", "h100"]
    assert [row[8] for row in rows[2:4]] == ["2.2%", "0.39%"]  # 360 MiB of 16 GiB, 300 MiB of 80 GB
    assert "2.2% of the device's 16 GiB" in text
    turned = plan_text(pipeline(cluster=Cluster.parse("h100:8+v100-16gb:8").to_dict()))
    assert "of the device's 74.5 GiB" in turned
    assert "type" not in plan_text(pipeline(cluster=Cluster.parse("h100:8+h100:8").to_dict())).split()


@pytest.mark.parametrize("width", [80, 120])
def test_unlike_devices_do_not_widen_the_page(width):
    plan = pipeline("zb-h1", cluster=Cluster.parse("v100-16gb:8+h100:8").to_dict())
    assert max(map(len, plan_text(plan, width).splitlines())) <= width


def test_stages_that_compute_again_say_so():
    plan = pipeline()
    assert "remat" not in plan_text(plan)
    stages = (dataclasses.replace(plan.stages[0], remat=("full", "attention", "none")), plan.stages[1])
    text = plan_text(dataclasses.replace(plan, stages=stages), 120)
    assert "full in 1 of 3 units, attention only in 1" in text


def test_every_task_is_drawn_once_in_order():
    rows = drawing(pipeline("zb-h1"))
    assert [row[:7] for row in rows] == ["stage 0", "stage 1"]
    for row in rows:
        for kind in "FBW":
            marks = [row.index(f"{kind}{m}") for m in range(4)]
            assert marks == sorted(marks)
        assert row.index("U") > row.index("W3")
    assert len({len(row) for row in rows}) == 1
    assert rows[1][rows[1].index("  ") + 2] == "."  # the second stage waits for the first


def test_tasks_too_many_to_be_told_apart_are_not_drawn():
    assert drawing(pipeline(microbatches=64)) == ()
    assert "The step as predicted" not in plan_text(pipeline(microbatches=64))


def test_a_backward_pass_of_weights_alone_takes_no_time_however_it_was_rounded():
    plan = pipeline("zb-h1")
    first = dataclasses.replace(plan.stages[0], weight_s=math.nextafter(plan.stages[0].backward_s, 1))
    text = plan_text(dataclasses.replace(plan, stages=(first, plan.stages[1])))
    assert next(line for line in text.splitlines() if line.startswith("  0 ")).split()[4:8] == ["7.5", "ms", "0", "s"]


def test_stages_that_share_devices_are_one_row():
    plan = pipeline(microbatches=4)
    a, b = plan.stages
    stages = (a, b, dataclasses.replace(a, units=(6, 9)), dataclasses.replace(b, units=(9, 12)))
    plan = dataclasses.replace(plan, stages=stages, schedule="interleaved", step_s=2 * plan.step_s)
    rows = drawing(plan)
    assert [row[:10] for row in rows] == ["stage 0, 2", "stage 1, 3"]
    assert "F2" in rows[0] and "B0" in rows[0] and "F1" in rows[1] and "B3" in rows[1]
    text = plan_text(plan)
    assert "4-stage interleaved 1F1B, " in text and "at the peak of stages 0, 2" in text
