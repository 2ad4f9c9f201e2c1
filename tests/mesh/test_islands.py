"""Clusters of unlike devices: what joins them, their parts, where stages lie on them, and their data."""

import dataclasses
import itertools
import json
import math
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import PRESETS, Cluster, Submesh, link_between, place

MIXED = "v100-16gb:4x8+h100:2x8"
TEXTS = [MIXED, "h100:2x8+v100-16gb:4x8", "cpu:4+cpu:4", "cpu:2x2+cpu:3+cpu:1", "v100-16gb:8+h100:4x1"]


def test_device_ids_count_through_the_islands():
    cluster = Cluster.parse(MIXED)
    assert cluster.name == MIXED and cluster.devices == 48
    assert [island.name for island in cluster.islands] == MIXED.split("+")
    assert [island.device.name for island in cluster.islands] == ["v100-16gb", "h100"]
    assert cluster.island_ids == (range(32), range(32, 48))
    alone = Cluster.parse("h100:2x8")
    assert alone.islands == (alone,) and alone.island_ids == (range(16),)


def test_the_join_is_the_slowest_network():
    (join,) = Cluster.parse(MIXED).levels
    v100, h100 = Cluster.parse("v100-16gb:4x8").levels[1], Cluster.parse("h100:2x8").levels[1]
    assert join.size == 2
    assert join.bytes_per_s == v100.bytes_per_s < h100.bytes_per_s
    assert join.latency_s == v100.latency_s > h100.latency_s


def test_an_island_of_one_host_is_joined_by_the_network_of_its_preset():
    (join,) = Cluster.parse("v100-16gb:8+h100:8").levels
    assert join.bytes_per_s == Cluster.parse("v100-16gb:2x8").levels[1].bytes_per_s
    (join,) = Cluster.parse("cpu:4+cpu:4").levels
    assert join.latency_s == PRESETS["cpu"].network_latency_s


def test_links_of_ones_own():
    parts = [Cluster.parse("h100:2x8"), Cluster.uniform(4, 1e9, 1e9, 1e-6, 1e9)]
    with pytest.raises(ClusterError, match=r"'uniform:4'.*nothing says how it is joined.*latency_s=.*bytes_per_s="):
        Cluster.joined(parts)
    with pytest.raises(ClusterError, match="nothing says"):
        Cluster.joined(parts, latency_s=1e-3)
    (join,) = Cluster.joined(parts, latency_s=1e-3, bytes_per_s=2e9).levels
    assert (join.size, join.latency_s, join.bytes_per_s) == (2, 1e-3, 2e9)
    (join,) = Cluster.joined([parts[0], Cluster.parse("v100-16gb:8")], bytes_per_s=7e9).levels
    assert (join.latency_s, join.bytes_per_s) == (PRESETS["v100-16gb"].network_latency_s, 7e9)


def test_the_device_of_unlike_islands_is_what_each_is_at_least():
    device = Cluster.parse(MIXED).device
    for island in Cluster.parse(MIXED).islands:
        assert device.memory_bytes <= island.device.memory_bytes and device.bytes_per_s <= island.device.bytes_per_s
        for dtype in ("float32", "bfloat16", "float64", "int8"):
            assert device.peak(dtype) <= island.device.peak(dtype)
    assert device.peak("float32") == PRESETS["v100-16gb"].device.peak("float32")
    assert Cluster.parse("cpu:4+cpu:2").device == PRESETS["cpu"].device


@pytest.mark.parametrize("text", TEXTS)
def test_parts_are_those_of_their_island(text):
    cluster = Cluster.parse(text)
    for powers in (False, True):
        shapes = cluster.submeshes(powers=powers)
        for index, island in enumerate(cluster.islands):
            mine = [s for s in shapes if s.island == index]
            assert [s.sizes for s in mine] == [s.sizes for s in island.submeshes(powers=powers)]
            for submesh in mine:
                alone = island.part(dataclasses.replace(submesh, island=0))
                assert cluster.part(submesh) == alone and alone.device == island.device
        assert len(shapes) == len(set(shapes))
    whole = Submesh(tuple(level.size for level in cluster.islands[1].levels), 1)
    assert cluster.part(whole) == cluster.islands[1]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips(text):
    cluster = Cluster.parse(text).with_memory(1e9)
    data = json.loads(json.dumps(cluster.to_dict(), allow_nan=False))
    again = Cluster.from_dict(data)
    assert again == cluster and again.fingerprint == cluster.fingerprint
    assert pickle.loads(pickle.dumps(cluster)) == cluster and hash(again) == hash(cluster)
    assert {island.device.memory_bytes for island in cluster.islands} == {cluster.device.memory_bytes} == {1e9}


def test_fingerprints_tell_islands_and_joins_apart():
    parts = [Cluster.parse("cpu:4"), Cluster.parse("cpu:2x2")]
    found = [
        *parts,
        Cluster.parse("cpu:8"),
        Cluster.joined(parts),
        Cluster.joined(parts[::-1]),
        Cluster.joined([parts[0], parts[0]]),
        Cluster.joined([parts[0]] * 3),
        Cluster.joined(parts, latency_s=1.0),
        Cluster.joined(parts, bytes_per_s=1.0),
    ]
    assert len({cluster.fingerprint for cluster in found}) == len(found)
    renamed = dataclasses.replace(found[3], name="mine")
    assert renamed.fingerprint == found[3].fingerprint


def test_one_kind_of_device_has_the_data_it_always_had():
    cluster = Cluster.parse("h100:2x8")
    assert set(cluster.to_dict()) == {"version", "name", "device", "levels"} and cluster.to_dict()["version"] == 1
    assert cluster.fingerprint == "9892a750ff075af92542f9bc93ed048e"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h100:8+h10:8", ["'h100:8+h10:8'", "'h10:8'", "did you mean"]),
        ("h100:8+", ["'h100:8+'", "joins islands by '+'", "''", "Known:"]),
        ("+", ["'+'", "Known:"]),
        ("h100:8+v100-16gb", ["no count", "v100-16gb:8"]),
        ("h100:8+v100-16gb:2x16", ["at most 8"]),
        ("h100:8 v100-16gb:8", ["counts"]),
    ],
)
def test_bad_text_is_a_lesson(text, words):
    with pytest.raises(ClusterError) as error:
        Cluster.parse(text)
    assert all(word in str(error.value) for word in words), error.value


def test_spaces_and_case_do_not_matter():
    assert Cluster.parse(" V100-16GB:4x8 + h100:16") == Cluster.parse(MIXED)


def test_what_cannot_be_joined():
    cluster = Cluster.parse(MIXED)
    with pytest.raises(ClusterError, match=r"two or more clusters, not \['h100:8'\]"):
        Cluster.joined([Cluster.parse("h100:8")])
    with pytest.raises(ClusterError, match="has islands itself"):
        Cluster.joined([cluster, Cluster.parse("h100:8")], latency_s=1.0, bytes_per_s=1.0)
    with pytest.raises(ClusterError, match=r"3 islands and levels of sizes \[2\]"):
        dataclasses.replace(cluster, members=(*cluster.members, Cluster.parse("h100:8")))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 3}, "version 3.*versions 1 and 2"),
        ({"islands": []}, "two or more clusters"),
        ({"islands": 3}, "version 2 is malformed"),
        ({"islands": [{}, {}]}, "version None"),
        ({"join": {}}, "malformed"),
    ],
)
def test_malformed_data(change, word):
    with pytest.raises(ClusterError, match=word):
        Cluster.from_dict({**Cluster.parse(MIXED).to_dict(), **change})


def test_no_mesh_over_several_islands():
    cluster = Cluster.parse("cpu:4+cpu:4")
    for use in (lambda: cluster.mesh((2, 4)), cluster.meshes):
        with pytest.raises(ClusterError, match=r"'cpu:4\+cpu:4' has 2 islands.*cluster.islands\[0\]"):
            use()


@pytest.mark.parametrize("island", [-1, 2])
def test_no_such_island(island):
    cluster = Cluster.parse(MIXED)
    for use in (cluster.part, lambda s: place(cluster, [s])):
        with pytest.raises(ClusterError, match=f"of island {island}, and cluster .* has 2"):
            use(Submesh((8, 1), island))
    with pytest.raises(ClusterError, match="of island 1, and cluster 'h100:2x8' has 1"):
        Cluster.parse("h100:2x8").part(Submesh((8, 1), 1))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TEXTS), st.integers(0, 10**6))
def test_every_sequence_has_a_place_on_its_islands(text, seed):
    cluster, dice = Cluster.parse(text), random.Random(seed)
    left, stages = [island.devices for island in cluster.islands], []
    while any(left):
        stages.append(dice.choice([s for s in cluster.submeshes() if s.devices <= left[s.island]]))
        left[stages[-1].island] -= stages[-1].devices
    places = place(cluster, stages)
    assert sorted(i for ids in places for i in ids) == list(range(cluster.devices))
    for ids, stage in zip(places, stages, strict=True):
        inside = cluster.island_ids[stage.island]
        assert len(ids) == stage.devices and ids[0] in inside and ids[-1] in inside
    for (a, i), (b, j) in itertools.combinations(zip(places, (s.island for s in stages), strict=True), 2):
        start = cluster.island_ids[i].start
        moved = [range(ids.start - start, ids.stop - start) for ids in (a, b)]
        expected = link_between(cluster.islands[i], *moved) if i == j else cluster.levels[0]
        assert link_between(cluster, a, b) == link_between(cluster, b, a) == expected


def test_too_many_devices_of_one_island():
    cluster = Cluster.parse("v100-16gb:4x8+h100:8")
    with pytest.raises(ClusterError, match=r"16 devices and cluster 'h100:8' has 8"):
        place(cluster, [Submesh((8,), 1), Submesh((8,), 1)])
    with pytest.raises(ClusterError, match="device 47 is not on cluster"):
        link_between(cluster, range(8), range(40, 48))
    assert math.prod(cluster.submeshes()[-1].sizes) == 8
