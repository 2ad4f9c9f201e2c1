"""Clusters in TOML files: what they say, the way back, and complaints that name the line and the field."""

import json
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import LINKS, PRESETS, Cluster, Level, link_between, place
from autopar.mesh.toml_lines import lines_of

FULL = """\
# Two sites of two pods, as one buys them.
name = "everything"

[device]
name = "gadget"
source = "its data sheet"
bandwidth = "1 TB/s"
memory = "80 GiB"
overhead = "4 us"
efficiency = 0.5

[device.flops]
bfloat16 = "100 TFLOP/s"
float32 = 2.0e13

[[level]]
name = "device"
size = 8
latency = "10 us"
bandwidth = "450 GB/s"

[[level]]
name = "host"
size = 4
latency = 2e-5
shared_bandwidth = "8 Gbit/s"

[[level]]
name = "pod"
size = 2
latency = "50 us"
bandwidth = 1e8

[[level]]
name = "site"
size = 2
link = "metro"
"""

ISLANDS = """\
[[island]]
name = "old"
cluster = "v100-16gb:4x8"

[[island]]
name = "new"
device = { preset = "h100", memory = "70 GB" }
level = [
  { name = "device", size = 8 },  # NVLink, as the preset says
  { name = "host", size = 2 },
]

[[island]]
name = "far"
cluster = "h100:8"

[[join]]
latency = "1 ms"
bandwidth = "1 Gbit/s"

[[join]]
between = ["new", "old"]
latency = "50 us"
bandwidth = "10 Gbit/s"
"""


_JOIN_ALL = '[[join]]\nlatency = "1 ms"\nbandwidth = "1 Gbit/s"\n'


def loaded(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return Cluster.load(path)


def test_everything_in_full(tmp_path):
    cluster = loaded(tmp_path, FULL)
    assert cluster.name == "everything" and cluster.devices == 128
    device = cluster.device
    assert (device.name, device.source) == ("gadget", "its data sheet")
    assert (device.bytes_per_s, device.memory_bytes) == (1e12, 80 * 2**30)
    assert (device.overhead_s, device.efficiency) == (4e-6, 0.5)
    assert device.flops_per_s == {"bfloat16": 1e14, "float32": 2e13}
    assert cluster.levels[:3] == (
        Level("device", 8, 1e-5, 450e9), Level("host", 4, 2e-5, 1e9 / 8), Level("pod", 2, 5e-5, 1e8),
    )  # fmt: skip
    assert cluster.levels[3] == Level("site", 2, LINKS["metro"].latency_s, LINKS["metro"].bytes_per_s / 64)


def test_a_preset_says_what_the_file_does_not(tmp_path):
    text = '[device]\npreset = "h100"\n[[level]]\nname = "device"\nsize = 8\n[[level]]\nname = "host"\nsize = 16\n'
    cluster = loaded(tmp_path, text)
    assert cluster.fingerprint == Cluster.parse("h100:16x8").fingerprint and cluster.name == "mine"
    slower = loaded(tmp_path, text.replace('"h100"', '"h100"\nmemory = "70 GB"') + 'bandwidth = "10 Gbit/s"\n')
    assert slower.device.memory_bytes == 70e9 and slower.device.peak("bfloat16") == cluster.device.peak("bfloat16")
    assert "changed in" in slower.device.source and slower.device.source.startswith(cluster.device.source)
    assert slower.levels[1] == Level("host", 16, cluster.levels[1].latency_s, 1.25e9)


def test_islands_and_the_links_between_them(tmp_path):
    cluster = loaded(tmp_path, ISLANDS)
    assert [island.name for island in cluster.islands] == ["old", "new", "far"]
    assert [island.devices for island in cluster.islands] == [32, 16, 8]
    assert cluster.islands[1].device.memory_bytes == 70e9
    assert cluster.islands[1].levels == Cluster.parse("h100:2x8").levels
    slow, fast = Level("island", 3, 1e-3, 1.25e8), Level("island", 3, 5e-5, 1.25e9)
    assert [cluster.joint(a, b) for a, b in ((0, 1), (1, 2), (2, 0))] == [fast, slow, slow]
    assert cluster.levels == (slow,)
    assert link_between(cluster, range(8), range(32, 40)) == fast
    assert link_between(cluster, range(48, 56), range(32, 40)) == slow
    assert [len(ids) for ids in place(cluster, [s for s in cluster.submeshes() if s.devices == 8][::-1])] == [8, 8, 8]


def test_links_that_are_all_alike_are_one(tmp_path):
    text = ISLANDS[: ISLANDS.rindex("[[join]]")]
    cluster = loaded(tmp_path, text)
    assert cluster.joints == ()
    joined = Cluster.joined(cluster.islands, latency_s=1e-3, bytes_per_s=1.25e8)
    assert cluster.fingerprint == joined.fingerprint


@pytest.mark.parametrize("text", [FULL, ISLANDS])
def test_round_trips(tmp_path, text):
    cluster = loaded(tmp_path, text)
    cluster.save(tmp_path / "again.toml")
    again = Cluster.load(tmp_path / "again.toml")
    assert again == cluster and again.fingerprint == cluster.fingerprint
    data = json.loads(json.dumps(cluster.to_dict(), allow_nan=False))
    assert Cluster.from_dict(data) == cluster and Cluster.from_dict(data).fingerprint == cluster.fingerprint


@pytest.mark.parametrize("text", [*(f"{name}:2x4" for name in PRESETS), "cpu:4+cpu:4", "h100:2x4x8:region"])
def test_presets_survive_a_file(tmp_path, text):
    cluster = Cluster.parse(text)
    cluster.save(tmp_path / "saved.toml")
    assert Cluster.load(tmp_path / "saved.toml").fingerprint == cluster.fingerprint


def test_what_has_no_limit(tmp_path):
    cluster = Cluster.uniform(4, math.inf, math.inf, 0.0, math.inf)
    cluster.save(tmp_path / "free.toml")
    assert Cluster.load(tmp_path / "free.toml") == cluster


def test_a_file_is_a_cluster_wherever_one_is_named(tmp_path):
    cluster = loaded(tmp_path, FULL)
    path = tmp_path / "mine.toml"
    assert Cluster.parse(str(path)) == cluster
    joined = Cluster.parse(f"{path}+h100:8") if "+" not in str(path) else None
    assert joined is None or [island.name for island in joined.islands] == ["everything", "h100:8"]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("size = 8", "size 8", 18, ["not TOML"]),
        ('bandwidth = "450 GB/s"', "bandwith = 1", 20, ["level 1 ('device')", "'bandwith'", "mean 'bandwidth'"]),
        ('"8 Gbit/s"', '"0 Gbit/s"', 26, ["shared_bandwidth of level 2", "positive"]),
        ("bandwidth = 1e8", "bandwidth = -1e8", 32, ["bandwidth of level 3 ('pod')", "positive"]),
        ("bandwidth = 1e8", "bandwidth = nan", 32, ["positive"]),
        ("bandwidth = 1e8", "bandwidth = true", 32, ["True", "a number, or text"]),
        ("bandwidth = 1e8", 'bandwidth = "1 Gb"', 32, ["'1 Gb' is not a bandwidth", "25 Gbit/s"]),
        ("bandwidth = 1e8\n", "", 28, ["level 3 ('pod') lacks the field 'bandwidth'"]),
        ('latency = "50 us"', "latency = -1", 31, ["latency of level 3", "0 or more"]),
        ('latency = "50 us"', "latency = inf", 31, ["finite"]),
        ("size = 4", "size = 0", 24, ["size of level 2", "1 or more"]),
        ("size = 4", "size = 4\ntorus = -1", 25, ["torus of level 2", "0 or more"]),
        ("size = 4", 'size = "four"', 24, ["'four'", "whole number"]),
        ("size = 4\n", "", 22, ["lacks the field 'size'"]),
        ('name = "pod"', "name = 3", 29, ["name of level 3 is 3", "must be text"]),
        ('link = "metro"', 'link = "meter"', 37, ["'meter'", "did you mean 'metro'"]),
        ('bandwidth = "450 GB/s"', 'bandwidth = 1\nshared_bandwidth = 1', 21, ["both bandwidth", "shared_bandwidth"]),
        ("efficiency = 0.5", "efficiency = 1.5", 10, ["at most 1"]),
        ('overhead = "4 us"', 'overhead = "4 m"', 9, ["'4 m' is not a time"]),
        ('memory = "80 GiB"', 'memory = "much"', 8, ["memory of the device", "not a size in bytes"]),
        ('memory = "80 GiB"\n', "", 4, ["the device lacks the field 'memory'"]),
        ('name = "gadget"', 'preset = "gadget"', 5, ["'gadget'", "Known:", "h100"]),
        ('bfloat16 = "100 TFLOP/s"', 'bfloat16 = "100 TB/s"', 13, ["bfloat16 of flops", "989 TFLOP/s"]),
        ('name = "everything"', "nom = 3", 2, ["the file has a field 'nom'", "did you mean 'name'"]),
        ("[device]", "[devise]", 4, ["'devise'", "did you mean 'device'"]),
        ("# Two", "join = {}\n# Two", 1, ["'join' joins islands"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path, old, new, line, words):
    assert old in FULL
    with pytest.raises(ClusterError) as error:
        loaded(tmp_path, FULL.replace(old, new, 1))
    message = str(error.value)
    assert f"line {line}" in message and "mine.toml" in message, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (_JOIN_ALL, "", 18, ["nothing joins islands 'old' and 'far'", "between"]),
        ('bandwidth = "1 Gbit/s"', 'bandwidth = "0 Gbit/s"', 19, ["bandwidth of join 1", "positive"]),
        ('["new", "old"]', '["new", "odd"]', 22, ["no island is called 'odd'", "did you mean 'old'"]),
        ('["new", "old"]', '["new"]', 22, ["two names"]),
        ('["new", "old"]', '["new", "new"]', 22, ["two names"]),
        ('between = ["new", "old"]\n', "", 21, ["say no 'between'"]),
        ('name = "far"', 'name = "old"', 14, ["two islands are called 'old'"]),
        ('"h100:8"', '"h10:8"', 15, ["no device is called 'h10'"]),
        ("memory = ", "memmory = ", 7, ["'memmory'", "did you mean 'memory'"]),
        ("size = 2 }", "size = two }", 10, ["not TOML"]),
        ("size = 2 }", "siez = 2 }", 10, ["'siez'", "did you mean 'size'"]),
        ("size = 8 }", "size = -8 }", 9, ["size of level 1", "1 or more"]),
    ],
)  # fmt: skip
def test_a_mistake_between_islands(tmp_path, old, new, line, words):
    assert old in ISLANDS
    with pytest.raises(ClusterError) as error:
        loaded(tmp_path, ISLANDS.replace(old, new, 1))
    message = str(error.value)
    assert f"line {line}" in message, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "text",
    ["", "[device]\npreset = 'cpu'\n", '[[island]]\ncluster = "cpu:8"\n', "level = 3\ndevice = {preset = 'cpu'}"],
)
def test_files_that_say_too_little(tmp_path, text):
    with pytest.raises(ClusterError, match=r"line 1: .*(device|level|island)"):
        loaded(tmp_path, text)


def test_no_such_file(tmp_path):
    for use in (Cluster.load, Cluster.parse):
        with pytest.raises(ClusterError, match="cannot be read as a cluster"):
            use(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="cannot be read"):
        Cluster.load(tmp_path / "binary.toml")


@st.composite
def documents(draw):
    """Random TOML with the line on which every leaf was written."""
    lines, expected = [], {}
    keys = st.sampled_from(["a", "b-1", '"q.x"', "'lit'"])
    values = st.sampled_from(
        ['"text # no comment"', "'it [[x]]'", "12", "1.5e3", "[1, 2]", '["a,]", "}"]', "{u = 1, v = '}'}", "true"]
    )

    def filler():
        lines.extend(draw(st.lists(st.sampled_from(["", "# note [x]", "   "]), max_size=2)))

    def fields(path):
        for key in draw(st.lists(keys, unique=True, max_size=3)):
            filler()
            value = draw(values)
            expected[(*path, key.strip("\"'"))] = len(lines) + 1
            lines.extend(f"{key} = {value}  # end".split("\n"))

    fields(())
    for name in draw(st.lists(st.sampled_from(["t", "u", "w"]), unique=True, max_size=3)):
        filler()
        if draw(st.booleans()):
            lines.append(f"[ {name} . x ]")
            expected[name, "x"] = len(lines)
            fields((name, "x"))
            continue
        for i in range(draw(st.integers(1, 3))):
            lines.append(f"[[{name}]]")
            expected[name, i] = len(lines)
            fields((name, i))
            if draw(st.booleans()):
                lines.extend([f"[{name}.sub]", "deep.er = [", "  1, # one", "  2,", "]"])
                expected[name, i, "sub", "deep", "er"] = len(lines) - 3
                expected[name, i, "sub", "deep", "er", 1] = len(lines) - 1
    return "\n".join(lines), expected


@given(documents())
def test_lines_are_where_fields_were_written(document):
    text, expected = document
    tomllib.loads(text)
    found = lines_of(text)
    assert {path: found.get(path) for path in expected} == expected
