"""A calibration of two devices, as hasty as can be: complete, plausible, and taken by the planner."""

import functools

import jax
import numpy as np
import pytest

import autopar
from autopar.calibrate import calibrate, collectives, device_name, work
from autopar.calibrate import run as running
from autopar.calibrate.collectives import _bodies
from autopar.calibrate.timing import Effort, repeated_s
from autopar.calibrate.work import _softmax, repeating, spread
from autopar.cli import main
from autopar.errors import ClusterError
from autopar.mesh import TRANSFER, Cluster, load_profile
from tests.bad_input.steps import STATE, X, Y, step

SIZES = {"_MATMULS": (64, 128), "_VECTORS": (4096, 16384), "_STREAMS": (2**14, 2**16), "_WRITTEN_OUT": 18}
KINDS = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}


def hasten(patch):
    """Few sizes, few repetitions, little time."""
    patch.setattr(running, "QUICK", Effort(2, 5e-4, 1.0))
    patch.setattr(running, "_dtypes", lambda: ["float32", "bfloat16"])
    patch.setattr(collectives, "_BYTES", (2**10, 2**14))
    for name, sizes in SIZES.items():
        patch.setattr(work, name, sizes)
    for module in (work, collectives):
        patch.setattr(module, "repeated_s", functools.partial(repeated_s, most=64))


@pytest.fixture(scope="module")
def profile():
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        return calibrate(jax.devices()[:2], quick=True)


def test_everything_is_there(profile):
    assert profile.device == "cpu" and profile.about["devices"] == "2" and profile.about["jax"] == jax.__version__
    assert [found.rates.devices for found in profile.measured] == [1, 2]
    for found in profile.measured:
        assert [dtype for dtype, _ in found.rates.matmul] == ["float32", "bfloat16"]
        assert [dtype for dtype, _ in found.rates.vector] == ["float32", "bfloat16"]
        assert found.overhead_s > 0 and found.rates.call_s(10) > 0
        best = max(flops / seconds for _, curve in found.rates.matmul for flops, seconds in curve)
        assert 1e7 < best < 1e14  # a rate per second, of a processor
    alone, both = profile.measured
    assert alone.lines == ()
    assert {(line.kind, line.size) for line in both.lines} == {(kind, 2) for kind in KINDS} | {(TRANSFER, 0)}
    assert all(1e-7 < line.latency_s + 1e4 * line.s_per_byte < 1 for line in both.lines)


def test_a_plan_is_priced_by_it(profile, tmp_path):
    profile.save(tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile
    options = autopar.Options(mesh=(2,), strategy="data")
    plan = autopar.plan(step, STATE, X, Y, cluster=f"cpu:2@{tmp_path}/p.json", options=options)
    found = profile.measured[1]
    lines = {line.kind: line for line in found.lines}
    for c in plan.collectives:
        line = lines[c.kind]
        assert c.seconds == pytest.approx(c.count * (line.latency_s + line.s_per_byte * c.bytes))
    call_s = found.rates.call_s(len(plan.arguments) + len(plan.results))
    assert plan.step_s == pytest.approx(plan.compute_s + plan.communication_s)
    assert plan.compute_s > call_s > 0
    assert plan.certificate.bound_s <= plan.certificate.objective_s == pytest.approx(plan.step_s)
    assert Cluster.from_dict(plan.cluster).device.rates == found.rates
    plan.save(tmp_path / "plan.json")
    assert autopar.load_plan(tmp_path / "plan.json", cluster=f"cpu:2@{tmp_path}/p.json") == plan
    with pytest.raises(autopar.PlanError, match="made for cluster"):
        autopar.load_plan(tmp_path / "plan.json", cluster="cpu:2")


def test_calls_of_a_pipeline_are_counted(profile):
    options = autopar.Options(stages=2, microbatches=4)
    cluster = Cluster.parse("cpu:2").with_profile(profile)
    plan = autopar.plan(step, STATE, X, Y, cluster=cluster, options=options)
    for stage in plan.stages:
        call_s = cluster.device.rates.call_s(len(stage.plan.arguments) + len(stage.plan.results))
        assert min(stage.forward_s, stage.backward_s, stage.once_s) >= call_s > 0
    assert plan.step_s == pytest.approx(plan.compute_s + plan.communication_s + plan.idle_s)


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_timed_is_the_collective(size):
    """One repetition of each, against numpy."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(-1, size), ("g", "m"))
    x = np.arange(4.0 * 8).reshape(4, 8).astype(np.float32)
    groups = x.reshape(-1, size, 8)
    total = groups.sum(1, keepdims=True).repeat(size, 1)
    scattered = groups.copy()
    scattered[:, :, : 8 // size] = (total / size).reshape(-1, size, size, 8 // size)[:, 0]
    expected = {
        "all-reduce": total / size,
        "all-gather": groups[:, :1].repeat(size, 1),
        "reduce-scatter": scattered,
        "all-to-all": groups.reshape(-1, size, size, 8 // size).swapaxes(1, 2),
        "collective-permute": np.roll(groups, 1, 1),
    }
    for kind, (_, body) in _bodies(size).items():
        placed = jax.device_put(x.reshape(-1), spread(mesh, (8,), "float32").sharding)
        found = repeating(mesh, body, placed)(1)()
        np.testing.assert_allclose(np.asarray(found).reshape(-1), expected[kind].reshape(-1), rtol=1e-6, err_msg=kind)


def test_softmax_is_one():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    np.testing.assert_allclose(_softmax(x), jax.nn.softmax(x, axis=1), rtol=1e-5)


def test_devices_and_their_names():
    class Fake:
        platform, process_index = "gpu", 0

        def __init__(self, kind):
            self.device_kind = kind

    assert device_name(jax.devices()[0]) == "cpu"
    assert device_name(Fake("NVIDIA H100 80GB HBM3")) == "h100" and device_name(Fake("NVIDIA T4")) is None
    with pytest.raises(ClusterError, match="several kinds, NVIDIA T4 and cpu"):
        calibrate([jax.devices()[0], Fake("NVIDIA T4")])


def test_the_command(tmp_path, monkeypatch, capsys):
    hasten(monkeypatch)
    path = tmp_path / "mine.json"
    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--quick", "--devices", "1", "--out", str(path)])
    out, err = capsys.readouterr()
    assert not end.value.code and "matmuls in float32" in out
    assert f"--cluster cpu:1@{path}" in " ".join(err.split())
    with pytest.raises(SystemExit) as end:
        main(["plan", "mlp", "--cluster", "cpu:1", "--profile", str(path)])
    assert not end.value.code and "on cpu:1" in capsys.readouterr().out
    for arguments, words in (
        (["plan", "mlp", "--cluster", "cpu:4", "--profile", str(path)], "up to 1 devices at work"),
        (["plan", "mlp", "--cluster", f"h100:8@{path}"], "is of cpu"),
        (["calibrate", "--out", str(tmp_path / "none" / "p.json")], "there is no folder"),
        (["calibrate", "--devices", "99"], "this process has"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2 and words in " ".join(capsys.readouterr().err.split())
