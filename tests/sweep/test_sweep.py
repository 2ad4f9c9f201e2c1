"""Sweeps: a row for every point, resumed where they were, sharing what clusters have in common."""

import csv
import dataclasses
import io
import json

import jax
import numpy as np
import pytest

import autopar
from autopar.planner.stages.section import Section
from autopar.simulate import simulate
from autopar.sweep import Case, Row, SweepResult, read_result, sweep
from autopar.sweep.plots import plot
from tests.api.pipelines import STATE, X, Y, step

SHAPES = jax.eval_shape(lambda: (STATE, X, Y))
SLOW = [autopar.Cluster.uniform(n, 1e8, 1e9, 1e-7, 1e9) for n in (1, 2, 4)]


def swept(clusters=("h100:1", "h100:2"), strategies=("auto", "data"), args=SHAPES, **asked):
    return sweep(step, *args, clusters=clusters, strategies=strategies, units=32, unit="examples", **asked)


def test_every_point_is_a_row_with_what_its_plan_says():
    found = swept()
    assert [(r.cluster, r.strategy) for r in found.rows] == [
        ("h100:1", "auto"), ("h100:1", "data"), ("h100:2", "auto"), ("h100:2", "data"),
    ]  # fmt: skip
    plan = autopar.plan(step, *SHAPES, cluster="h100:2")
    row = found.rows[2]
    line = simulate(plan, units=32)
    assert (row.step_s, row.mfu, row.peak_bytes) == (line.step_s, line.mfu, plan.peak_bytes)
    assert row.units_per_s == pytest.approx(32 / row.step_s) and row.devices == 2 and row.memory_bytes == 80e9
    assert row.planning_s > 0 and row.measured_step_s is None and not found.weak


def test_efficiency_is_throughput_per_device_of_the_first():
    rows = [Row(f"c:{n}", n, s, 1, 100.0, "planned", units_per_s=u, step_s=100 / u)
            for n, s, u in ((2, "auto", 20.0), (2, "data", 10.0), (4, "auto", 30.0), (4, "data", 35.0))]  # fmt: skip
    none = Row("c:8", 8, "auto", 1, 100.0, "does not fit", why="too large")
    found = SweepResult((*rows, none), {"step": "s"})
    assert [found.efficiency(r) for r in rows] == [1.0, 0.5, 0.75, 0.875]
    assert found.best() == (rows[0], rows[3]) and found.best("auto") == (rows[0], rows[2])


def test_the_table_is_written_and_read(tmp_path):
    found = swept(out=tmp_path / "sweep")
    assert read_result(tmp_path / "sweep" / "sweep.json").rows == found.rows
    table = list(csv.DictReader(io.StringIO((tmp_path / "sweep" / "sweep.csv").read_text())))
    assert [float(r["step_s"]) for r in table] == pytest.approx([r.step_s for r in found.rows])
    assert table[0]["efficiency"] == "1" and table[0]["measured_step_s"] == ""
    with pytest.raises(autopar.OptionError, match="no result of a sweep"):
        read_result(tmp_path / "sweep" / "sweep.csv")


class Stop(Exception):
    pass


def stop_after(count):
    def done(row, n, of):
        if n == count:
            raise Stop

    return done


@pytest.mark.parametrize("torn", ["", '{"cluster": "h100:2", "dev'])
def test_an_interrupted_sweep_goes_on(tmp_path, torn):
    with pytest.raises(Stop):
        swept(out=tmp_path, done=stop_after(3))
    journal = tmp_path / "sweep.jsonl"
    before = journal.read_text().splitlines()
    assert len(before) == 1 + 3
    with journal.open("a") as file:
        file.write(torn)
    planned = []
    found = swept(out=tmp_path, progress=planned.append)
    assert len({line.split(":")[0] for line in planned}) == 1  # one mesh of the one point that was left
    assert journal.read_text().splitlines()[:4] == before and len(journal.read_text().splitlines()) == 5
    assert [dataclasses.asdict(r) for r in found.rows[:3]] == [json.loads(line) for line in before[1:]]
    assert swept(out=tmp_path).rows == found.rows


@pytest.mark.parametrize(
    "other, words",
    [
        ({"strategies": ["auto"]}, 'strategies was \\["auto", "data"\\], and is now \\["auto"\\]'),
        ({"clusters": ["h100:1", "h100:4"]}, 'clusters was \\["h100:1", "h100:2"\\]'),
        ({"microbatches": [2]}, "microbatches was"),
        ({"options": autopar.Options(max_axes=1)}, "options was"),
        ({"args": (*SHAPES[:2], jax.ShapeDtypeStruct((32, 16), "float32"))}, "fingerprint was"),
    ],
)
def test_another_sweep_in_the_same_folder(tmp_path, other, words):
    swept(out=tmp_path)
    with pytest.raises(autopar.OptionError, match=rf"holds another sweep: {words}"):
        swept(out=tmp_path, **other)


@pytest.mark.parametrize("content", ["{}\n", '{"kind": "autopar sweep", "format": 9}\n', "junk\n", b"\xff\xfe\n"])
def test_a_damaged_journal(tmp_path, content):
    (tmp_path / "sweep.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(autopar.OptionError, match=r"is damaged, or no file of a sweep|cannot keep a sweep"):
        swept(out=tmp_path)


def test_a_row_of_the_journal_that_is_damaged(tmp_path):
    swept(out=tmp_path)
    lines = (tmp_path / "sweep.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"cluster": "h100:1", "colour": "red"})
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(autopar.OptionError, match="is damaged"):
        swept(out=tmp_path)


def test_a_folder_that_cannot_be(tmp_path):
    with pytest.raises(autopar.OptionError, match=r"cannot keep a sweep in .*nowhere"):
        swept(out=tmp_path / "nowhere" / "deeper")


def test_what_has_no_plan_is_a_row_that_says_so():
    found = swept(["h100:1"], ["auto"], microbatches=[1, 5], options=autopar.Options(memory_bytes=1000))
    small, odd = found.rows
    assert small.status == "does not fit" and "per device" in small.why and small.step_s == 0
    assert odd.status == "refused" and "32" in odd.why
    assert found.best() == () and "does not fit" in found.to_csv()


def test_weak_scaling_asks_for_each_batch():
    asked = []

    def case(cluster):
        asked.append(cluster.devices)
        batch = jax.ShapeDtypeStruct((32 * cluster.devices, 16), "float64")
        return Case(step, (SHAPES[0], batch, batch), 32 * cluster.devices)

    found = sweep(case, clusters=["h100:1", "h100:2", "h100:4"], strategies=["data"], scaled=True, unit="examples")
    assert asked == [1, 2, 4] and [r.units for r in found.rows] == [32, 64, 128] and found.weak
    assert found.efficiency(found.rows[2]) == pytest.approx(found.rows[0].step_s / found.rows[2].step_s)


def test_stages_share_the_plans_of_their_units(monkeypatch):
    """Alone or together the plans take as long; together programs of equal units are built once."""
    built = []
    original = Section.__init__

    def counted(self, problem, stage, units, cluster, options, prepared=None):
        built.append((stage[0].graph.fingerprint, units[1] - units[0], cluster.fingerprint))
        original(self, problem, stage, units, cluster, options, prepared)

    monkeypatch.setattr(Section, "__init__", counted)
    options = autopar.Options(max_stages=2)
    together = swept(SLOW, ["auto"], microbatches=[4], options=options)
    units = [b for b in built if b[1] == 1]
    assert len(units) == len(set(units))
    built.clear()
    alone = [swept([cluster], ["auto"], microbatches=[4], options=options).rows[0] for cluster in SLOW]
    again = [b for b in built if b[1] == 1]
    assert len(again) > len(set(again)) == len(units)
    for a, b in zip(together.rows, alone, strict=True):
        assert a.step_s == pytest.approx(b.step_s, rel=0.02)
    for row, cluster in zip(together.rows, SLOW, strict=True):
        plan = autopar.plan(step, *SHAPES, cluster=cluster, options=dataclasses.replace(options, microbatches=4))
        assert row.step_s == pytest.approx(simulate(plan).step_s, rel=0.05) and row.stages == len(plan.stages)


def test_plans_are_run_and_measured_beside_the_prediction():
    clusters = [autopar.Cluster.uniform(n, 1e8, 1e9, 1e-7, 1e9) for n in (1, 2)]
    state = jax.tree.map(np.asarray, STATE)
    found = swept(clusters, ["auto"], args=(state, X, Y), microbatches=[4], run_steps=2, donate_argnums=0)
    staged = swept(clusters[1:], ["auto"], args=(state, X, Y), microbatches=[4], run_steps=2, donate_argnums=0,
                   options=autopar.Options(stages=2))  # fmt: skip
    for row in (*found.rows, *staged.rows):
        assert row.status == "planned" and 0 < row.measured_step_s < 10
    assert staged.rows[0].stages == 2


def test_arguments_survive_being_run():
    state = jax.tree.map(jax.numpy.asarray, STATE)
    for _ in range(2):
        swept(["cpu:1", "cpu:2"], ["data"], args=(state, X, Y), run_steps=1, donate_argnums=0)
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_a_picture_is_drawn(tmp_path):
    found = swept(run_steps=0)
    plot(found, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    plot(found, tmp_path / "sweep.svg")
    assert "<svg" in (tmp_path / "sweep.svg").read_text()
    with pytest.raises(autopar.OptionError, match="cannot draw the sweep"):
        plot(found, tmp_path / "nowhere" / "sweep.png")
    with pytest.raises(autopar.OptionError, match="nothing to draw"):
        plot(dataclasses.replace(found, rows=()), tmp_path / "sweep.png")


@pytest.mark.parametrize(
    "wrong, kind, words",
    [
        ({"clusters": []}, autopar.OptionError, "clusters must be a list of one or more"),
        ({"clusters": "h100:8"}, autopar.OptionError, "clusters must be a list"),
        ({"clusters": ["h1000:8"]}, autopar.ClusterError, "no device is called 'h1000'"),
        ({"clusters": ["h100:8", "h100:1x8"]}, autopar.OptionError, "cluster 'h100:8' is asked for twice"),
        ({"strategies": ["auto", "fsdq"]}, autopar.OptionError, "unknown strategy 'fsdq': did you mean 'fsdp'"),
        ({"microbatches": [0]}, autopar.OptionError, "microbatches must be a whole number"),
        ({"run_steps": -1}, autopar.OptionError, "run_steps is a number of steps"),
        ({"scaled": True}, autopar.OptionError, "come with the Case"),
    ],
)
def test_what_makes_no_sense(wrong, kind, words):
    with pytest.raises(kind, match=words):
        swept(**{"clusters": ["h100:2"], **wrong})
