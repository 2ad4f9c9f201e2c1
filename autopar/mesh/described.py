"""Clusters described in TOML files: a device, levels of links innermost first, or islands and what joins them.

Numbers are SI (seconds, bytes, bytes per second, FLOP per second), or text with a unit. Every complaint names the
file, the line and the field.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autopar.errors import ClusterError, nearest
from autopar.mesh.device import Device
from autopar.mesh.links import Joint, Level
from autopar.mesh.presets import PRESETS, parse
from autopar.mesh.toml_lines import Path as Keys
from autopar.mesh.toml_lines import lines_of
from autopar.mesh.wide_area import LINKS
from autopar.units import parse_bytes, parse_bytes_per_s, parse_flops_per_s, parse_seconds


@dataclass(frozen=True)
class Island:
    """A cluster of equal devices, as a file describes it."""

    name: str
    device: Device
    levels: tuple[Level, ...]

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(level.size for level in self.levels)


@dataclass(frozen=True)
class Described:
    """What a file says.

    Attributes:
      name: of the cluster.
      islands: one, or several.
      joints: of several, what joins each pair of them.
    """

    name: str
    islands: tuple[Island, ...]
    joints: tuple[Joint, ...] = ()


def read_cluster(path: str | os.PathLike[str]) -> Described:
    """Read a cluster from a TOML file. See :meth:`Cluster.load`."""
    file = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"{file} cannot be read as a cluster: {error}") from error
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ClusterError(f"{file} is not TOML: {error}") from error
    return _cluster(_Table(file, lines_of(text), fields), Path(path).stem)


def cluster_text(found: Described) -> str:
    """The TOML text that :func:`read_cluster` reads back; equal islands of one name are told apart by number."""
    lines = [f"name = {_toml(found.name)}"]
    if len(found.islands) == 1:
        return "\n".join([*lines, *_island_lines(found.islands[0], "")]) + "\n"
    names = [island.name for island in found.islands]
    names = [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    for name, island in zip(names, found.islands, strict=True):
        lines += ["", "[[island]]", f"name = {_toml(name)}", *_island_lines(island, "island.")]
    for joint in found.joints:
        between = f"between = [{_toml(names[joint.first])}, {_toml(names[joint.second])}]"
        lines += ["", "[[join]]", between, *_link_lines(joint)]
    return "\n".join(lines) + "\n"


def _island_lines(island: Island, inside: str) -> list[str]:
    device = island.device
    lines = [
        "", f"[{inside}device]", f"name = {_toml(device.name)}", f"source = {_toml(device.source)}",
        f"bandwidth = {_toml(device.bytes_per_s)}", f"memory = {_toml(device.memory_bytes)}",
        f"overhead = {_toml(device.overhead_s)}", f"efficiency = {_toml(device.efficiency)}",
        "", f"[{inside}device.flops]", *(f"{dtype} = {_toml(rate)}" for dtype, rate in device.flops_per_s.items()),
    ]  # fmt: skip
    for level in island.levels:
        lines += ["", f"[[{inside}level]]", f"name = {_toml(level.name)}", f"size = {level.size}", *_link_lines(level)]
        lines += [f"torus = {level.torus}"] if level.torus else []
        lines += [f"sharers = {level.sharers}"] if level.sharers > 1 else []
    return lines


def _link_lines(link: Level | Joint) -> list[str]:
    return [f"latency = {_toml(link.latency_s)}", f"bandwidth = {_toml(link.bytes_per_s)}"]


def _toml(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(float(value))


@dataclass(frozen=True)
class _Table:
    """A table of the file, which knows where its fields stand.

    Attributes:
      what: what it describes, for people: ``level 2 ('host')``.
    """

    file: str
    lines: Mapping[Keys, int] = field(repr=False)
    fields: Mapping[str, Any]
    keys: Keys = ()
    what: str = "the file"

    def error(self, message: str, *keys: str | int) -> ClusterError:
        path = (*self.keys, *keys)
        while path and path not in self.lines:
            path = path[:-1]
        return ClusterError(f"{self.file}, line {self.lines.get(path, 1)}: {message}")

    def known(self, names: Iterable[str]) -> None:
        """Refuse fields that mean nothing here."""
        names = list(names)
        for key in self.fields:
            if key not in names:
                raise self.error(f"{self.what} has a field {key!r}, which is unknown; {nearest(key, names)}", key)

    def missing(self, name: str, why: str = "") -> ClusterError:
        return self.error(f"{self.what} lacks the field {name!r}{why}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.fields.get(name, default)
        if value is None:
            raise self.missing(name)
        if not isinstance(value, str) or not value:
            raise self.error(f"{name} of {self.what} is {value!r}; it must be text", name)
        return value

    def amount(
        self, name: str, read: Callable[[str], float], default: float | None = None, *, least: float | None = None
    ) -> float:
        """A number in SI units, or text with a unit; positive, or at least ``least``."""
        value = self.fields.get(name, default)
        if value is None:
            raise self.missing(name)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.error(f"{name} of {self.what} is {value!r}; it must be a number, or text with a unit", name)
        try:
            found = float(read(value)) if isinstance(value, str) else float(value)
        except ValueError as error:
            raise self.error(f"{name} of {self.what}: {error}", name) from error
        if least is None and not found > 0:
            raise self.error(f"{name} of {self.what} is {value!r}; it must be positive", name)
        if least is not None and not least <= found < math.inf:
            raise self.error(f"{name} of {self.what} is {value!r}; it must be {least:g} or more, and finite", name)
        return found

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number."""
        value = self.fields.get(name, default)
        if value is None:
            raise self.missing(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(f"{name} of {self.what} is {value!r}; it must be a whole number, {least} or more", name)
        return value

    def table(self, name: str, what: str) -> _Table:
        value = self.fields.get(name)
        if value is None:
            raise self.missing(name, f"; write a table [{name}]")
        if not isinstance(value, Mapping):
            raise self.error(f"{name} of {self.what} is {value!r}; it must be a table", name)
        return replace(self, fields=value, keys=(*self.keys, name), what=what)

    def tables(self, name: str) -> list[_Table]:
        """The tables of an array; a single table counts as one."""
        value = self.fields.get(name, [])
        if isinstance(value, Mapping):
            return [self.table(name, name)]
        if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
            raise self.error(f"{name} of {self.what} is {value!r}; it must be one or more tables [[{name}]]", name)
        found = []
        for i, fields in enumerate(value):
            title = fields.get("name")
            what = f"{name} {i + 1}" + (f" ({title!r})" if isinstance(title, str) else "")
            found.append(replace(self, fields=fields, keys=(*self.keys, name, i), what=what))
        return found


def _cluster(root: _Table, stem: str) -> Described:
    if "island" not in root.fields:
        if "join" in root.fields:
            raise root.error("'join' joins islands, and there is no [[island]]", "join")
        root.known(("name", "device", "level"))
        name = root.text("name", stem)
        return Described(name, (_island(root, name),))
    root.known(("name", "island", "join"))
    tables = root.tables("island")
    islands = tuple(_island(table, table.text("name", f"island {i + 1}")) for i, table in enumerate(tables))
    if len(islands) < 2:
        raise root.error("there is one [[island]]; without unlike islands, say [device] and [[level]] alone", "island")
    names = [island.name for island in islands]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise tables[i].error(f"two islands are called {name!r}", "name")
    return Described(root.text("name", stem), islands, _joints(root, islands))


def _island(table: _Table, name: str) -> Island:
    if "cluster" in table.fields:
        table.known(("name", "cluster"))
        text = table.text("cluster")
        try:
            _, device, levels = parse(text)
        except ClusterError as error:
            raise table.error(f"cluster of {table.what}: {error}", "cluster") from error
        return Island(name, device, levels)
    if table.keys:
        table.known(("name", "cluster", "device", "level"))
    device = _device(table.table("device", f"the device of {name!r}" if table.keys else "the device"))
    tables = table.tables("level")
    if not tables:
        raise table.missing("level", "; write tables [[level]], innermost first")
    found: list[Level] = []
    for each in tables:
        found.append(_level(each, device, found))
    return Island(name, device, tuple(found))


def _device(table: _Table) -> Device:
    known = ("preset", "name", "flops", "bandwidth", "memory", "overhead", "efficiency", "source")
    table.known(known)
    base: Device | None = None
    if "preset" in table.fields:
        preset = table.text("preset")
        if preset not in PRESETS:
            raise table.error(f"preset of {table.what} is {preset!r}; {nearest(preset, PRESETS)}", "preset")
        base = PRESETS[preset].device
    source = f"{base.source}; changed in {table.file}" if base and len(table.fields) > 1 else base and base.source
    efficiency = table.amount("efficiency", float, base.efficiency if base else 1.0)
    if efficiency > 1:
        raise table.error(f"efficiency of {table.what} is {efficiency:g}; it must be at most 1", "efficiency")
    return Device(
        table.text("name", base.name if base else None),
        _flops(table, base),
        table.amount("bandwidth", parse_bytes_per_s, base.bytes_per_s if base else None),
        table.amount("memory", parse_bytes, base.memory_bytes if base else None),
        table.amount("overhead", parse_seconds, base.overhead_s if base else 0.0, least=0.0),
        table.text("source", source or f"described in {table.file}"),
        efficiency,
    )


def _flops(table: _Table, base: Device | None) -> Mapping[str, float]:
    """Rates by dtype: those of the preset, those of the file in their place."""
    given = dict(base.flops_per_s) if base else {}
    if "flops" not in table.fields and base:
        return given
    if "flops" in table.fields and not isinstance(table.fields["flops"], Mapping):
        return {"float32": table.amount("flops", parse_flops_per_s)}
    rates = table.table("flops", f"flops of {table.what}")
    if not rates.fields:
        raise rates.error(f"{rates.what} names no dtype; write for example float32 = '10 TFLOP/s'")
    return given | {dtype: rates.amount(dtype, parse_flops_per_s) for dtype in rates.fields}


_LINK = ("link", "latency", "bandwidth", "shared_bandwidth")


def _level(table: _Table, device: Device, inner: Sequence[Level]) -> Level:
    """A level of links, with what its preset says where the file says nothing."""
    table.known(("name", "size", *_LINK, "torus", "sharers"))
    name = table.text("name")
    size = table.count("size")
    below = math.prod(level.size for level in inner)
    base: Level | None = None
    preset = PRESETS.get(device.name)
    if preset is not None and not inner:
        base = preset.levels(1, size)[0]
    elif preset is not None and len(inner) == 1 and name == preset.group:
        base = preset.network(size, below)
    latency_s, bytes_per_s = _link(table, below, base)
    base = base if "link" not in table.fields else None
    torus = table.count("torus", base.torus if base else 0, least=0)
    sharers = table.count("sharers", base.sharers if base else 1)
    return Level(name, size, latency_s, bytes_per_s, torus=torus, sharers=sharers)


def _link(table: _Table, sharers: int, base: Level | None = None) -> tuple[float, float]:
    """Latency and bandwidth per device of a link that so many devices share."""
    both = [key for key in ("bandwidth", "shared_bandwidth") if key in table.fields]
    if len(both) == 2:
        raise table.error(f"{table.what} has both {both[0]} (of each device) and {both[1]} (of all together)", both[1])
    if "link" in table.fields:
        link = table.text("link")
        if link not in LINKS:
            raise table.error(f"link of {table.what} is {link!r}; {nearest(link, LINKS)}", "link")
        base = LINKS[link].level(link, 1, sharers)
    latency_s = table.amount("latency", parse_seconds, base.latency_s if base else None, least=0.0)
    if "shared_bandwidth" in table.fields:
        return latency_s, table.amount("shared_bandwidth", parse_bytes_per_s) / sharers
    return latency_s, table.amount("bandwidth", parse_bytes_per_s, base.bytes_per_s if base else None)


def _joints(root: _Table, islands: Sequence[Island]) -> tuple[Joint, ...]:
    """What joins each pair of islands: what is said of the two, or else of all."""
    names = [island.name for island in islands]
    default: _Table | None = None
    said: dict[tuple[int, int], _Table] = {}
    for table in root.tables("join"):
        table.known(("between", *_LINK))
        between = table.fields.get("between")
        if between is None:
            if default is not None:
                raise table.error("two tables [[join]] say no 'between'; one is for all pairs that have none of theirs")
            default = table
            continue
        if not isinstance(between, list) or len(between) != 2 or between[0] == between[1]:
            raise table.error(f"between of {table.what} is {between!r}; it must be two names of islands", "between")
        for each in between:
            if each not in names:
                raise table.error(f"no island is called {each!r}; {nearest(str(each), names)}", "between")
        first, second = sorted(map(names.index, between))
        said[first, second] = table
    found = []
    for pair in itertools.combinations(range(len(islands)), 2):
        table = said.get(pair, default)  # type: ignore[arg-type, assignment]
        if table is None:
            a, b = (names[i] for i in pair)
            raise root.error(
                f"nothing joins islands {a!r} and {b!r}: write a table [[join]] with latency and bandwidth, of all "
                f"pairs or with between = [{a!r}, {b!r}]",
                "join",
            )
        sharers = max(islands[i].devices for i in pair)
        found.append(Joint(*pair, *_link(table, sharers)))
    return tuple(found)
