"""Traces: valid Trace Event JSON, and every duration that of the simulation."""

import dataclasses
import itertools
import json

import pytest

import autopar
from autopar.mesh import Cluster
from autopar.runtime import Span
from autopar.simulate import simulate
from tests.report.plans import decoder, pipeline

# https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: fields each phase must have
REQUIRED = {"X": {"name", "ts", "dur", "pid", "tid"}, "C": {"name", "ts", "pid", "args"}, "M": {"name", "pid", "args"}}
SLOW = Cluster.uniform(16, 1e12, 1e12, 1e-3, 1e8).to_dict()


def traced(path, plan, measured=(), **settings):
    found = simulate(plan, **settings)
    found.to_perfetto(path, measured)
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    for e in events:
        assert REQUIRED[e["ph"]] <= e.keys()
        assert e.get("ts", 0) >= 0 and e.get("dur", 0) >= 0
    for pid, tid in {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}:
        here = sorted(
            (e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)
        )
        assert all(one[1] <= two[0] + 1e-6 for one, two in itertools.pairwise(here))  # else viewers nest them
        assert any(e["ph"] == "M" and (e["pid"], e.get("tid")) == (pid, tid) for e in events)
    return found, events


def spans(events, track):
    """Tasks or messages of the track of a name: name -> (seconds from, seconds to)."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and "tid" in e}
    return {
        e["name"]: (e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in events
        if e["ph"] == "X" and names[e["pid"], e["tid"]] == track
    }


@pytest.mark.parametrize("contention", [False, True])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1"])
def test_every_task_and_message_is_there_with_its_times(tmp_path, schedule, contention):
    plan = pipeline(schedule, cluster=SLOW)
    found, events = traced(tmp_path / "trace.json", plan, contention=contention)
    for worker in (0, 1):
        expected = {
            f"{e.task.kind.value}{e.task.microbatch}": (e.start_s, e.end_s)
            for e in found.timeline.events
            if e.worker == worker
        } | {"U": found.updates[worker][1:]}
        seen = spans(events, f"stage {worker}")
        assert seen.keys() == expected.keys()
        for name, times in expected.items():
            assert seen[name] == pytest.approx(times)
    messages = [e for e in events if e.get("cat") == "message"]
    assert sorted(e["dur"] for e in messages) == pytest.approx(
        sorted((m.end_s - m.start_s) * 1e6 for m in found.timeline.messages)
    )
    if contention:
        there = spans(events, "stage 0 to stage 1 (device)")
        assert list(there) == [f"F{m}" for m in range(4)]


def test_memory_is_a_counter_of_each_stage(tmp_path):
    found, events = traced(tmp_path / "trace.json", pipeline())
    for worker, use in enumerate(found.workers):
        name = f"bytes on a device of stage {worker}"
        counted = [(e["ts"], e["args"]["bytes"]) for e in events if e["ph"] == "C" and e["name"] == name]
        assert [t / 1e6 for t, _ in counted] == pytest.approx([t for t, _ in use.memory])
        assert [n for _, n in counted] == [n for _, n in use.memory]
        assert max(n for _, n in counted) == use.peak_bytes


def test_a_measured_step_stands_beside_the_prediction(tmp_path):
    ran = [
        Span(0, 0, "prepare", None, 0.0, 0.001),
        Span(0, 0, "forward", 0, 0.001, 0.002),
        Span(1, 1, "forward", 0, 0.003, 0.0045),
        Span(1, 1, "update.0", None, 0.005, 0.006),
    ]
    _, events = traced(tmp_path / "trace.json", pipeline(), ran)
    measured = [e for e in events if e["ph"] == "X" and e["pid"] == 3]
    assert [e["name"] for e in measured] == ["prepare", "F0", "F0", "update.0"]
    assert [e["dur"] for e in measured] == pytest.approx([1000, 1000, 1500, 1000])
    names = [e["args"]["name"] for e in events if e["ph"] == "M" and e["pid"] == 3]
    assert names == ["train_step, measured", "stage 0", "stage 1"]


def test_stages_that_share_a_worker_are_told_apart(tmp_path):
    plan = pipeline()
    a, b = plan.stages
    plan = dataclasses.replace(plan, stages=(a, b, a, b), schedule="interleaved")
    _, events = traced(tmp_path / "trace.json", plan, [Span(0, 0, "forward", 1, 0, 1), Span(0, 2, "forward", 1, 1, 2)])
    assert {"F0.0", "F2.0"} <= spans(events, "stages 0, 2").keys()
    assert [e["name"] for e in events if e["pid"] == 3 and e["ph"] == "X"] == ["F0.1", "F2.1"]


def test_a_plan_without_stages_has_one_track(tmp_path):
    phases = {"forward": 0.01, "backward": 0.02, "update": 0.001}
    _, events = traced(tmp_path / "trace.json", decoder(phase_s=phases, microbatches=2))
    assert spans(events, "all devices").keys() == {"F0", "B0", "F1", "B1", "U"}


def test_a_folder_that_is_missing(tmp_path):
    path = tmp_path / "nowhere" / "trace.json"
    with pytest.raises(autopar.OptionError, match=r"cannot save the trace .* no folder .*nowhere"):
        simulate(pipeline()).to_perfetto(path)


@pytest.mark.parametrize("plan", [pipeline(), decoder(phase_s={"forward": 1.0, "backward": 2.0, "update": 0.0})])
def test_spans_of_another_plan(tmp_path, plan):
    with pytest.raises(autopar.OptionError, match="the measured spans have stage 2, and the plan of train_step has"):
        simulate(plan).to_perfetto(tmp_path / "trace.json", [Span(2, 2, "forward", 0, 0.0, 1.0)])
