"""Clusters as JSON: strict, so infinity is text; and digests of what prices a plan.

What was measured stands there only where something was, so that other clusters keep the data they always had.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from autopar.errors import ClusterError
from autopar.mesh.described import Described, Island
from autopar.mesh.device import Device
from autopar.mesh.links import Joint, Level
from autopar.mesh.measured import CollectiveLine, rates_from_dict, rates_to_dict

VERSION = 1
OF_ISLANDS = 2  # version of the data of clusters of islands
_WORDS = ("name", "source")  # fields that describe and do not price


def described_to_dict(found: Described, join: Level | None, unlike: bool) -> dict[str, Any]:
    """JSON-able facts of a cluster.

    Args:
      found: the cluster.
      join: of several islands, what joins them.
      unlike: whether pairs of them have links of their own.
    """
    if join is None:
        (island,) = found.islands
        return {
            "version": VERSION,
            "name": found.name,
            "device": _device_to_dict(island.device),
            "levels": [_link_to_dict(level) for level in island.levels],
        }
    return {
        "version": OF_ISLANDS,
        "name": found.name,
        "join": _link_to_dict(join),
        "islands": [described_to_dict(Described(i.name, (i,)), None, False) for i in found.islands],
        **({"joints": [_link_to_dict(joint) for joint in found.joints]} if unlike else {}),
    }


def described_from_dict(data: Mapping[str, Any]) -> tuple[Described, Level | None]:
    """The inverse of :func:`described_to_dict`: a cluster and, of several islands, what joins them.

    Raises:
      ClusterError: another version, or fields that are missing, unknown or of a wrong type.
    """
    version = data.get("version")
    if version not in (VERSION, OF_ISLANDS):
        raise ClusterError(
            f"cluster data has version {version!r}; this autopar reads versions {VERSION} and {OF_ISLANDS}"
        )
    try:
        if version == VERSION:
            levels = tuple(map(_level_from_dict, data["levels"]))
            return Described(data["name"], (Island(data["name"], _device_from_dict(data["device"]), levels),)), None
        join = _level_from_dict(data["join"])
        islands = tuple(described_from_dict(island)[0].islands[0] for island in data["islands"])
        if len(islands) < 2:
            raise ClusterError(f"a cluster of islands is made of two or more clusters, not {len(islands)}")
        joints = tuple(Joint(**_infinite(joint)) for joint in data.get("joints", ()))
        pairs = itertools.combinations(range(len(islands)), 2)
        alike = tuple(Joint(*pair, join.latency_s, join.bytes_per_s) for pair in pairs)
        return Described(data["name"], islands, joints or alike), join
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClusterError(
            f"cluster data of version {version} is malformed: {error}; write it with Cluster.to_dict"
        ) from error


def fingerprint(device: Device, levels: Sequence[Level]) -> str:
    """Digest of what prices a plan on equal devices."""
    return _digest([VERSION, _anonymous(_device_to_dict(device)), *map(_link_facts, levels)])


def fingerprint_of(join: Level, islands: Sequence[str], joints: Sequence[Joint]) -> str:
    """Digest of what prices a plan on islands, by their fingerprints and what joins them."""
    return _digest([OF_ISLANDS, _link_facts(join), *islands, *map(_link_facts, joints)])


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _link_facts(link: Level | Joint) -> dict[str, Any]:
    return _anonymous(_link_to_dict(link))


def _device_to_dict(device: Device) -> dict[str, Any]:
    data = _finite({f.name: getattr(device, f.name) for f in fields(device) if f.name != "rates"})
    return data if device.rates is None else data | {"rates": rates_to_dict(device.rates)}


def _device_from_dict(data: Mapping[str, Any]) -> Device:
    given = _infinite(data)
    if "rates" in data:
        given["rates"] = rates_from_dict(data["rates"])
    return Device(**given)


def _link_to_dict(link: Level | Joint) -> dict[str, Any]:
    seldom = {"torus": 0, "sharers": 1}  # in the data only where they say something
    data = _finite({f.name: getattr(link, f.name) for f in fields(link) if f.name not in ("measured", *seldom)})
    data |= {name: getattr(link, name, usual) for name, usual in seldom.items() if getattr(link, name, usual) != usual}
    lines = getattr(link, "measured", ())
    return data | ({"measured": [list(line) for line in lines]} if lines else {})


def _level_from_dict(data: Mapping[str, Any]) -> Level:
    lines = tuple(CollectiveLine(*line) for line in data.get("measured", ()))
    return Level(**(_infinite(data) | {"measured": lines}))


def _finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON types only: infinity as text."""
    return {k: _finite(v) if isinstance(v, Mapping) else "inf" if v == math.inf else v for k, v in data.items()}


def _infinite(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_finite`."""
    return {k: _infinite(v) if isinstance(v, Mapping) else _number(k, v) for k, v in data.items()}


def _number(key: str, value: Any) -> Any:
    return math.inf if value == "inf" and key not in _WORDS else value


def _anonymous(data: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers alone, all as floats, so that 16 and 16.0 are one."""
    return {k: _numbers(v) for k, v in data.items() if k not in _WORDS}


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _anonymous(value)
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return value if isinstance(value, str) else float(value)
