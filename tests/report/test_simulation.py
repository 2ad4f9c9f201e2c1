from pathlib import Path

import pytest

from autopar.mesh import Cluster
from autopar.report import simulation_text
from autopar.simulate import simulate
from tests.report.plans import decoder, pipeline

GOLDENS = Path(__file__).parent / "goldens"
WORK = {"flops": {"bfloat16": 4e13, "float32": 1e12}, "again_flops": 1e13}
SLOW = Cluster.uniform(16, 1e12, 1e12, 1e-3, 2e7).to_dict()


def test_golden(golden):
    found = simulate(pipeline(**WORK), units=2**20)
    golden(GOLDENS / "simulation.txt", simulation_text(found, found.bill(1e12, 2.5)))


def test_messages_that_queue_are_told():
    plan = pipeline(cluster=SLOW, **WORK)
    queued, alone = simulation_text(simulate(plan)), simulation_text(simulate(plan, contention=False))
    assert "each message as if alone" in alone and "each message as if alone" not in queued
    there = [next(x for x in text.splitlines() if x.startswith("  stage 0 to 1")) for text in (queued, alone)]
    assert not there[0].endswith(" 0 s") and there[1].endswith(" 0 s")


def test_a_plan_without_stages_and_without_flops():
    text = simulation_text(simulate(decoder(phase_s={"forward": 0.01, "backward": 0.02, "update": 0.001})))
    assert "one program, 1 micro-batch: 3 tasks and 0 messages" in text
    assert "MFU     unknown" in text and "bubble" not in text and "Links" not in text and "HFU" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_asked(width):
    found = simulate(pipeline("zb-h1", **WORK), units=2**20)
    assert max(map(len, simulation_text(found, found.bill(1e13, 1e3), width).splitlines())) <= width
