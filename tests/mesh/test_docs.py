"""The examples of docs/clusters.md are clusters."""

import re
from pathlib import Path

from autopar.mesh import LINKS, Cluster

TEXT = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()


def test_files(tmp_path):
    full, islands = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    for name, text in (("full", full), ("islands", islands)):
        (tmp_path / f"{name}.toml").write_text(text)
    cluster = Cluster.load(tmp_path / "full.toml")
    assert [level.name for level in cluster.levels] == ["device", "host", "pod", "site"]
    assert (cluster.name, cluster.devices) == ("two buildings", 512)
    assert cluster.levels[2].bytes_per_s == 3.2e12 / 128 and cluster.levels[3].bytes_per_s == 50e9 / 256
    cluster = Cluster.load(tmp_path / "islands.toml")
    assert cluster.joint(0, 1).bytes_per_s == 25e9 / 8
    assert cluster.joint(0, 2).latency_s == LINKS["region"].latency_s


def test_texts():
    names = re.findall(r"^\| `([^`]+)`", TEXT, re.MULTILINE)
    assert len(names) == 6
    for name in names:
        if not name.endswith(".toml"):
            assert Cluster.parse(name).devices > 0
