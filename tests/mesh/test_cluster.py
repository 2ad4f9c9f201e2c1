"""Clusters: parsing, presets, round trips and errors."""

import contextlib
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import PRESETS, Cluster, Device, Level

CLUSTERS = ["cpu:8", "cpu:2x4", "h100:8", "h100:16x8", "v100-16gb:8x8", "a100-80gb:1x1", "tpu-v3:2048", "tpu-v5e:2x256"]


@pytest.mark.parametrize(
    ("text", "sizes", "names"),
    [
        ("cpu:8", (8,), ("device",)),
        ("cpu:2x4", (4, 2), ("device", "host")),
        ("h100:8", (8,), ("device",)),
        ("h100:16x8", (8, 16), ("device", "host")),
        ("h100:64", (8, 8), ("device", "host")),
        ("H100:1x4 ", (4,), ("device",)),
        ("v100-16gb:8x1", (1, 8), ("device", "host")),
        ("tpu-v3:2048", (2048,), ("device",)),
        ("tpu-v5e:512", (256, 2), ("device", "pod")),
    ],
)
def test_parse(text, sizes, names):
    cluster = Cluster.parse(text)
    assert tuple(level.size for level in cluster.levels) == sizes
    assert tuple(level.name for level in cluster.levels) == names
    assert cluster.devices == math.prod(sizes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_where_their_numbers_come_from(name):
    preset = PRESETS[name]
    assert preset.device.name == name
    assert len(preset.device.source) > 20
    assert preset.device_network_bytes_per_s <= preset.inner_bytes_per_s  # outer links are slower
    assert preset.network_latency_s >= preset.inner_latency_s
    assert {"bfloat16", "float32"} <= set(preset.device.flops_per_s)
    assert Cluster.parse(f"{name}:1").devices == 1


def test_a_host_shares_its_network_among_its_devices():
    assert Cluster.parse("v100-16gb:8x8").levels[1].bytes_per_s == pytest.approx(25e9 / 8 / 8)
    assert Cluster.parse("v100-16gb:8x1").levels[1].bytes_per_s == pytest.approx(25e9 / 8)
    # A single H100 still has one 400 Gbit/s card, not all eight.
    assert Cluster.parse("h100:8x1").levels[1].bytes_per_s == pytest.approx(400e9 / 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h10:8", ["'h10'", "did you mean", "h100"]),
        ("gpu:8", ["'gpu'", "Known:", "tpu-v4"]),
        ("", ["''"]),
        ("h100", ["no count", "h100:8"]),
        ("h100:", ["no count"]),
        ("h100:8x", ["'8x'", "h100:2x8"]),
        ("h100:axb", ["'axb'"]),
        ("h100:-8", ["'-8'"]),
        ("h100:8:8", ["no link between sites is called '8'", "Known:", "metro"]),
        ("h100:2x2x2", ["'2x2x2'", "h100:2x16x8:metro"]),
        ("h100:2x2x2:", ["no link between sites is called ''"]),
        ("h100:2x2x2x2:metro", ["'2x2x2x2:metro'"]),
        ("h100:2x8:metra", ["'metra'", "did you mean 'metro'"]),
        ("h100:8:metro", ["one count", "h100:2x8:metro"]),
        ("h100:0x8:metro", ["count of 0"]),
        ("h100:1.5", ["'1.5'"]),
        ("h100:٣", ["counts"]),
        ("h100:0", ["count of 0"]),
        ("h100:0x8", ["count of 0"]),
        ("h100:8x16", ["16 devices per host", "at most 8"]),
        ("h100:12", ["12 devices", "no multiple"]),
    ],
)
def test_bad_text_is_a_lesson(text, words):
    with pytest.raises(ClusterError) as error:
        Cluster.parse(text)
    assert all(word in str(error.value) for word in words), error.value


def test_text_that_is_no_text():
    with pytest.raises(ClusterError, match="named by text"):
        Cluster.parse(8)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", CLUSTERS)
def test_round_trips(text):
    cluster = Cluster.parse(text)
    data = json.loads(json.dumps(cluster.to_dict(), allow_nan=False))
    assert Cluster.from_dict(data) == cluster
    assert Cluster.from_dict(data).fingerprint == cluster.fingerprint
    assert pickle.loads(pickle.dumps(cluster)) == cluster
    assert hash(Cluster.parse(text)) == hash(cluster)


def test_infinities_survive_strict_json():
    cluster = Cluster.uniform(4, math.inf, math.inf, 1.0, math.inf)
    data = json.loads(json.dumps(cluster.to_dict(), allow_nan=False))
    assert Cluster.from_dict(data) == cluster


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version"),
        ({"device": {}}, "malformed"),
        ({"device": 3}, "malformed"),
        ({"levels": [{"name": "device", "size": "eight", "latency_s": 0, "bytes_per_s": 1}]}, "malformed"),
        ({"levels": [{"name": "device", "size": 8, "latency_s": 0, "bytes_per_s": 1, "colour": "red"}]}, "colour"),
        ({"levels": []}, "no level"),
    ],
)
def test_malformed_data(change, word):
    with pytest.raises(ClusterError, match=word):
        Cluster.from_dict({**Cluster.parse("cpu:8").to_dict(), **change})


def test_missing_field():
    data = Cluster.parse("cpu:8").to_dict()
    del data["levels"]
    with pytest.raises(ClusterError, match="levels"):
        Cluster.from_dict(data)


def test_fingerprint_is_of_numbers_not_of_names():
    cluster = Cluster.parse("h100:2x8")
    renamed = dataclasses.replace(
        cluster, name="mine", device=dataclasses.replace(cluster.device, name="gpu", source="me")
    )
    assert renamed.fingerprint == cluster.fingerprint
    assert Cluster.uniform(4, 1, 1, 1, 1).fingerprint == Cluster.uniform(4, 1.0, 1.0, 1.0, 1.0).fingerprint
    assert Cluster.parse("h100:1x8").fingerprint == Cluster.parse("h100:8").fingerprint
    assert len({Cluster.parse(text).fingerprint for text in CLUSTERS}) == len(CLUSTERS)


def test_with_memory():
    cluster = Cluster.parse("h100:8").with_memory(1e9)
    assert cluster.device.memory_bytes == 1e9
    assert cluster.levels == Cluster.parse("h100:8").levels
    assert cluster.fingerprint != Cluster.parse("h100:8").fingerprint


def test_uniform():
    cluster = Cluster.uniform(4, 2.0, 3.0, 1.0, 5.0)
    assert (cluster.devices, cluster.device.peak("float64"), cluster.device.peak("int32")) == (4, 2.0, 2.0)
    assert cluster.device.memory_bytes == math.inf
    assert Cluster.uniform(4, 1, 1, 1, 1, memory_bytes=7).device.memory_bytes == 7
    assert cluster.levels == (Level("device", 4, 1.0, 5.0),)


@pytest.mark.parametrize("amount", [0, -1, math.nan])
def test_impossible_numbers(amount):
    with pytest.raises(ClusterError, match="positive"):
        Device("d", {"float32": amount}, 1, 1)
    with pytest.raises(ClusterError, match="positive"):
        Device("d", {"float32": 1}, amount, 1)
    with pytest.raises(ClusterError, match="positive"):
        Cluster.parse("cpu:8").with_memory(amount)
    with pytest.raises(ClusterError, match="positive"):
        Level("device", 8, 0.0, amount)


def test_other_impossible_numbers():
    with pytest.raises(ClusterError, match="no FLOP/s"):
        Device("d", {}, 1, 1)
    with pytest.raises(ClusterError, match="overhead_s"):
        Device("d", {"float32": 1}, 1, 1, overhead_s=-1)
    with pytest.raises(ClusterError, match="efficiency"):
        Device("d", {"float32": 1}, 1, 1, efficiency=1.5)
    with pytest.raises(ClusterError, match="latency_s"):
        Level("device", 8, math.nan, 1.0)
    with pytest.raises(ClusterError, match="1 or more"):
        Cluster.uniform(0, 1, 1, 1, 1)


def test_peak_rules():
    h100, v100 = PRESETS["h100"].device, PRESETS["v100-16gb"].device
    assert h100.peak("float32") == h100.flops_per_s["tf32"]
    assert h100.peak("float16") == h100.peak("bfloat16")
    assert h100.peak("float8_e4m3fn") == h100.flops_per_s["float8"]
    assert v100.peak("float8_e4m3fn") == v100.peak("bfloat16")
    assert v100.peak("bfloat16") == v100.peak("float32") < v100.peak("float16")
    assert v100.peak("int32") == v100.peak("complex128") == 7.8e12


@given(st.text(max_size=20))
def test_any_text_parses_or_is_refused(text):
    with contextlib.suppress(ClusterError):
        assert Cluster.parse(text).devices > 0
