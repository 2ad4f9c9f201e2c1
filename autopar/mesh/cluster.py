"""A cluster: devices joined by a hierarchy of links. Plain data, no jax."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autopar.errors import ClusterError
from autopar.mesh.device import Device
from autopar.mesh.links import Level, axis_links
from autopar.mesh.logical import LogicalMesh, axis_names
from autopar.mesh.presets import parse
from autopar.mesh.submesh import Submesh, check_submesh, submeshes_of

VERSION = 1
_WORDS = ("name", "source")  # fields that describe and do not price


@dataclass(frozen=True)
class Cluster:
    """Equal devices joined by levels of links. Device ids count through the innermost level first.

    Attributes:
      name: as the user wrote it (``h100:16x8``); not part of the fingerprint.
      device: what every device is.
      levels: innermost first.

    >>> Cluster.parse("h100:2x8").devices
    16
    """

    name: str
    device: Device
    levels: tuple[Level, ...]

    def __post_init__(self):
        if not self.levels:
            raise ClusterError(f"cluster {self.name!r} has no level; a single device is one level of size 1")

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(level.size for level in self.levels)

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """A cluster of preset devices, from ``<device>:<count>`` or ``<device>:<hosts>x<devices per host>``.

        One count is the number of devices; more than fit one host (one pod, for TPUs) fill several hosts. The
        devices are listed in :data:`autopar.mesh.PRESETS`.

        Raises:
          ClusterError: the device is unknown, the counts are malformed or not positive, or a host cannot hold
            that many devices.

        >>> [(level.name, level.size) for level in Cluster.parse("h100:16x8").levels]
        [('device', 8), ('host', 16)]
        """
        name, device, levels = parse(text)
        return cls(name, device, levels)

    @classmethod
    def uniform(
        cls,
        devices: int,
        flops_per_s: float,
        bytes_per_s: float,
        link_latency_s: float,
        link_bytes_per_s: float,
        *,
        memory_bytes: float = math.inf,
    ) -> Cluster:
        """Devices of one speed for every dtype, all pairs joined by equal links: for tests and thought experiments.

        Args:
          devices: how many.
          flops_per_s: peak of each, any dtype; ``inf`` makes compute free.
          bytes_per_s: memory bandwidth of each; ``inf`` makes memory traffic free.
          link_latency_s: fixed time of one collective.
          link_bytes_per_s: link bandwidth per device and direction.
          memory_bytes: capacity of each.
        """
        device = Device("uniform", {"float32": flops_per_s}, bytes_per_s, memory_bytes, source="given")
        level = Level("device", devices, link_latency_s, link_bytes_per_s)
        return cls(f"uniform:{devices}", device, (level,))

    def with_memory(self, memory_bytes: float) -> Cluster:
        """The same cluster with another memory capacity per device."""
        return replace(self, device=replace(self.device, memory_bytes=memory_bytes))

    def mesh(self, shape: Sequence[int]) -> LogicalMesh:
        """A logical mesh over all devices, axis 0 outermost.

        Args:
          shape: axis sizes; their product is the number of devices.

        Raises:
          ClusterError: the product is not the number of devices.

        >>> Cluster.parse("h100:2x8").mesh((2, 8)).axes[0].levels[0].size
        2
        """
        shape = tuple(int(n) for n in shape)
        if not shape or any(n < 1 for n in shape) or math.prod(shape) != self.devices:
            raise ClusterError(
                f"mesh shape {shape} does not fit cluster {self.name!r}: its axis sizes multiply to "
                f"{math.prod(shape) if shape else 'nothing'}, and there are {self.devices} devices"
            )
        levels = tuple((level.size, level.latency_s, level.bytes_per_s) for level in self.levels)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        axes = tuple(axis_links(levels, n, stride) for n, stride in zip(shape, strides, strict=True))
        return LogicalMesh(shape, axis_names(len(shape)), axes)

    def meshes(self, max_axes: int = 3) -> tuple[LogicalMesh, ...]:
        """Every logical mesh of 1 to ``max_axes`` axes of size over 1: fewer axes first, then by shape.

        One device has one mesh, of shape ``(1,)``.

        >>> [m.shape for m in Cluster.parse("cpu:4").meshes()]
        [(4,), (2, 2)]
        """
        if max_axes < 1:
            raise ClusterError(f"a mesh needs at least one axis, not max_axes={max_axes}")
        shapes = [s for axes in range(1, max_axes + 1) for s in _factorisations(self.devices, axes)]
        return tuple(self.mesh(shape) for shape in shapes or [(1,)])

    def submeshes(self, *, powers: bool = False) -> tuple[Submesh, ...]:
        """Every shape that a pipeline stage may have, smallest first.

        - Within a host, the numbers of devices that divide the host's.
        - Hosts with all their devices: any number of them. Of more than two levels, only the outermost gives any
          number; the others give divisors, so that parts fill wholes.

        Args:
          powers: of the outermost level, only divisors and powers of two: fewer shapes to plan on where there are
            many hosts.

        >>> [str(submesh) for submesh in Cluster.parse("h100:3x8").submeshes()]
        ['1', '2', '4', '8', '2x8', '3x8']
        """
        return tuple(submeshes_of([level.size for level in self.levels], powers))

    def part(self, submesh: Submesh) -> Cluster:
        """The devices of a submesh as a cluster of their own: the same device, the levels that lie inside.

        Raises:
          ClusterError: it is no submesh of this cluster.

        >>> cluster = Cluster.parse("h100:16x8")
        >>> cluster.part(cluster.submeshes()[4]).fingerprint == Cluster.parse("h100:2x8").fingerprint
        True
        """
        check_submesh(self.name, [level.size for level in self.levels], submesh)
        if submesh.devices == self.devices:
            return self
        inside = zip(self.levels[: submesh.level + 1], submesh.sizes, strict=False)
        return Cluster(f"{self.name}[{submesh}]", self.device, tuple(replace(level, size=n) for level, n in inside))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts; infinities are the text ``"inf"``, so that the JSON is strict."""
        return {
            "version": VERSION,
            "name": self.name,
            "device": _finite(asdict(self.device)),
            "levels": [_finite(asdict(level)) for level in self.levels],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """The inverse of :meth:`to_dict`.

        Raises:
          ClusterError: another version, or fields that are missing, unknown or of a wrong type.
        """
        version = data.get("version")
        if version != VERSION:
            raise ClusterError(f"cluster data has version {version!r}; this autopar reads version {VERSION}")
        try:
            device = Device(**_infinite(data["device"]))
            levels = tuple(Level(**_infinite(level)) for level in data["levels"])
            return cls(data["name"], device, levels)
        except (KeyError, TypeError, AttributeError) as error:
            raise ClusterError(f"cluster data is malformed: {error}; write it with Cluster.to_dict") from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of everything that prices a plan; independent of names and sources."""
        data = self.to_dict()
        facts = [VERSION, _anonymous(data["device"]), *map(_anonymous, data["levels"])]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _factorisations(n: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Ordered ways to write ``n`` as a product of ``axes`` numbers over 1, in lexicographic order."""
    if axes == 1:
        if n > 1:
            yield (n,)
        return
    for first in range(2, n // 2 + 1):
        if n % first == 0:
            for rest in _factorisations(n // first, axes - 1):
                yield (first, *rest)


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
    return {
        k: _anonymous(v) if isinstance(v, Mapping) else float(v) if v != "inf" else v
        for k, v in data.items()
        if k not in _WORDS
    }
