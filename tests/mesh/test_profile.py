"""Profiles: what was measured replaces what was assumed, of the devices that were measured and of no others."""

import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import (
    TRANSFER,
    Cluster,
    CollectiveLine,
    Measured,
    Profile,
    Rates,
    Submesh,
    line_for,
    load_profile,
    seconds_at,
)

CURVE = ((1e3, 1e-6), (1e6, 1e-4), (1e9, 0.5))


def measured(devices, slower=1.0):
    curve = tuple((amount, slower * seconds) for amount, seconds in CURVE)
    rates = Rates(devices, (("float32", curve),), (("float32", curve),), curve, 1e-4, 1e-6)
    lines = [CollectiveLine("all-reduce", n, 1e-5 * n, 1e-9) for n in (2, 4, 8) if n <= devices]
    return Measured(rates, 5e-6, (*lines, CollectiveLine(TRANSFER, 0, 2e-5, 3e-9)))


PROFILE = Profile("cpu", tuple(measured(n, n) for n in (1, 2, 4, 8)), {"processor": "abacus", "date": "2026-01-01"})


@st.composite
def curves(draw):
    sizes = st.floats(1e-9, 1e12, exclude_min=True)
    amounts = sorted(draw(st.lists(sizes, min_size=1, max_size=5, unique=True)))
    seconds = sorted(draw(st.lists(st.floats(1e-9, 1e3), min_size=len(amounts), max_size=len(amounts))))
    return tuple(zip(amounts, seconds, strict=True))


@given(curves(), st.floats(0, 1e15), st.floats(0, 1e15))
def test_more_work_never_takes_less_time(curve, a, b):
    assert 0 <= seconds_at(curve, min(a, b)) <= seconds_at(curve, max(a, b)) * (1 + 1e-9)


@given(curves())
def test_what_was_measured_takes_what_was_measured(curve):
    for amount, seconds in curve:
        assert seconds_at(curve, amount) == pytest.approx(seconds)
    assert seconds_at(curve, 2 * curve[-1][0]) == pytest.approx(2 * curve[-1][1])
    assert seconds_at(curve, curve[0][0] / 2) == pytest.approx(curve[0][1] / 2)


def test_lines_between_sizes_and_beyond():
    lines = measured(8).lines
    assert line_for(lines, "all-reduce", 6).latency_s == pytest.approx(6e-5)
    assert line_for(lines, "all-reduce", 16).latency_s == pytest.approx(8e-5)
    assert line_for(lines, "all-to-all", 2) is None
    assert line_for(lines, TRANSFER, 0).s_per_byte == 3e-9


@pytest.mark.parametrize(("devices", "factor"), [(1, 1), (2, 2), (3, 4), (8, 8)])
def test_rates_are_those_of_as_many_devices_at_work(devices, factor):
    cluster = Cluster.parse(f"cpu:{devices}").with_profile(PROFILE)
    assert cluster.device.arithmetic_s("float32", 1e6) == pytest.approx(factor * 1e-4)
    assert cluster.device.overhead_s == 5e-6 and cluster.device.name == "cpu"
    assert "abacus" in cluster.device.source and "2026-01-01" in cluster.device.source


def test_other_dtypes_run_as_the_slowest_that_was_measured():
    fast = tuple((amount, seconds / 10) for amount, seconds in CURVE)
    rates = Rates(1, (("bfloat16", fast), ("float32", CURVE)), (("float32", CURVE),), CURVE)
    device = dataclasses.replace(Cluster.parse("cpu:1").device, rates=rates)
    assert device.arithmetic_s("float16", 1e6) == pytest.approx(1e-5)  # as bfloat16 does
    assert device.arithmetic_s("float64", 1e6) == pytest.approx(1e-4)
    assert device.arithmetic_s("bfloat16", 1e6, matmul=False) == pytest.approx(1e-4)


def test_parts_keep_what_was_measured():
    cluster = Cluster.parse("cpu:2x8").with_profile(PROFILE)
    part = cluster.part(Submesh((4, 1)))
    assert part.device == cluster.device and part.levels[0].measured == cluster.levels[0].measured
    assert cluster.levels[1] == Cluster.parse("cpu:2x8").levels[1]
    crossing = part.mesh((4,)).axes[0].levels[0]
    assert [(line.kind, line.size) for line in crossing.measured] == [("all-reduce", 4), (TRANSFER, 4)]


def test_it_is_another_cluster_and_survives_json():
    plain = Cluster.parse("cpu:8")
    cluster = plain.with_profile(PROFILE)
    again = Cluster.from_dict(json.loads(json.dumps(cluster.to_dict(), allow_nan=False)))
    assert again == cluster and again.fingerprint == cluster.fingerprint != plain.fingerprint
    assert pickle.loads(pickle.dumps(cluster)) == cluster and isinstance(hash(cluster), int)
    other = plain.with_profile(dataclasses.replace(PROFILE, measured=(measured(8, 9),)))
    assert other.fingerprint != cluster.fingerprint
    renamed = plain.with_profile(dataclasses.replace(PROFILE, about={"date": "another"}))
    assert renamed.fingerprint == cluster.fingerprint


def test_files_and_names(tmp_path):
    path = tmp_path / "mine.json"
    PROFILE.save(path)
    assert load_profile(path) == PROFILE
    cluster = Cluster.parse("cpu:8").with_profile(PROFILE)
    assert Cluster.parse(f"cpu:8@{path}") == cluster == Cluster.parse("cpu:8").with_profile(path)
    (tmp_path / "mine.toml").write_text('name = "m"\ndevice.preset = "cpu"\nlevel = [{name = "device", size = 8}]')
    assert Cluster.parse(f"{tmp_path}/mine.toml@{path}").fingerprint == cluster.fingerprint
    joined = Cluster.parse(f"cpu:8@{path}+h100:8")
    assert joined.islands[0] == cluster and joined.islands[1].device.rates is None
    assert Cluster.parse("cpu:8+h100:8").with_profile(PROFILE).islands == joined.islands


def test_what_was_measured_cannot_be_said_in_toml(tmp_path):
    with pytest.raises(ClusterError, match=r"was calibrated.*with_profile"):
        Cluster.parse("cpu:8").with_profile(PROFILE).save(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h100:8", "profile is of cpu .*abacus.*cluster 'h100:8' is of h100.*Calibrate on h100"),
        ("h100:8+v100-16gb:8", "profile is of cpu"),
        ("cpu:16", "up to 8 devices at work, and the cluster has 16 on one host"),
    ],
)
def test_another_device_is_refused(text, words):
    with pytest.raises(ClusterError, match=words):
        Cluster.parse(text).with_profile(PROFILE)


def edited(tmp_path, change):
    PROFILE.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    change(data)
    (tmp_path / "p.json").write_text(json.dumps(data))
    return tmp_path / "p.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(version=7), "version 7; this autopar reads version 1"),
        (lambda d: d.pop("version"), "version None"),
        (lambda d: d.pop("device"), "malformed profile.*device"),
        (lambda d: d.update(measured=[]), "without measurements"),
        (lambda d: d["measured"][0].pop("lines"), "malformed.*lines"),
        (lambda d: d["measured"][0]["lines"][0].update(latency_s=-1.0), "negative time"),
        (lambda d: d["measured"][0]["rates"].update(memory=[[2, 1], [1, 2]]), "memory.*rising"),
        (lambda d: d["measured"][0]["rates"].update(matmul={}), "no dtype"),
        (lambda d: d["measured"][0]["rates"].update(devices=0), "0 devices"),
        (lambda d: d["measured"][0]["rates"].update(dispatch_s=-1), "dispatch_s"),
    ],
)
def test_a_damaged_profile(tmp_path, change, words):
    with pytest.raises(ClusterError, match=words):
        load_profile(edited(tmp_path, change))


def test_no_profile(tmp_path):
    with pytest.raises(ClusterError, match=r"cannot be read as a profile.*autopar calibrate"):
        Cluster.parse(f"cpu:8@{tmp_path}/none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ClusterError, match="version None"):
        load_profile(tmp_path / "list.json")
    assert math.isfinite(PROFILE.measured[0].overhead_s)
