"""A cluster: devices joined by a hierarchy of links. Plain data, no jax.

Devices are equal, or equal on each of several *islands*: clusters of equal devices, joined by one more level of links.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopar.errors import ClusterError
from autopar.mesh import encoding
from autopar.mesh.described import Described, Island, cluster_text, read_cluster
from autopar.mesh.device import Device, least
from autopar.mesh.links import Joint, Level, axis_links, joining
from autopar.mesh.logical import LogicalMesh, axis_names, factorisations
from autopar.mesh.presets import outward, parse
from autopar.mesh.profile import Profile, load_profile, profiled
from autopar.mesh.submesh import Submesh, check_submesh, submeshes_of


@dataclass(frozen=True)
class Cluster:
    """Devices joined by levels of links. Device ids count through the innermost level first.

    With ``members`` it is a cluster of islands, as :meth:`joined` makes it: ids count through the islands in order.
    A stage of a pipeline lies on one of them; a step without stages is not spread over several.

    Attributes:
      name: as the user wrote it (``h100:16x8``); not part of the fingerprint.
      device: what every device is; of unlike islands, what each is at least.
      levels: innermost first; of islands, the one that joins them, as slow as the slowest of ``joints``.
      members: the islands, each of equal devices; empty where all devices are equal.
      joints: where pairs of islands are joined by unlike links, that of each pair.

    >>> Cluster.parse("h100:2x8").devices, Cluster.parse("v100-16gb:4x8+h100:2x8").devices
    (16, 48)
    """

    name: str
    device: Device
    levels: tuple[Level, ...]
    members: tuple[Cluster, ...] = ()
    joints: tuple[Joint, ...] = ()

    def __post_init__(self):
        if not self.levels:
            raise ClusterError(f"cluster {self.name!r} has no level; a single device is one level of size 1")
        if not self.members:
            return
        if any(island.members for island in self.members):
            raise ClusterError(f"cluster {self.name!r} has an island that has islands itself; list all of them in one")
        if [level.size for level in self.levels] != [len(self.members)]:
            raise ClusterError(
                f"cluster {self.name!r} has {len(self.members)} islands and levels of sizes "
                f"{[level.size for level in self.levels]}; Cluster.joined makes the one level that joins them"
            )
        pairs = set(itertools.combinations(range(len(self.members)), 2))
        for missing in sorted(pairs - {(j.first, j.second) for j in self.joints}) if self.joints else ():
            a, b = (self.members[i].name for i in missing)
            raise ClusterError(
                f"cluster {self.name!r} has no link between its islands {a!r} and {b!r}; join all or none"
            )

    @property
    def devices(self) -> int:
        """Number of devices."""
        if self.members:
            return sum(island.devices for island in self.members)
        return math.prod(level.size for level in self.levels)

    @property
    def islands(self) -> tuple[Cluster, ...]:
        """Clusters of equal devices: those that were joined, or this one."""
        return self.members or (self,)

    @property
    def island_ids(self) -> tuple[range, ...]:
        """Device ids of each island.

        >>> Cluster.parse("v100-16gb:8+h100:2x8").island_ids
        (range(0, 8), range(8, 24))
        """
        stops = list(itertools.accumulate(island.devices for island in self.islands))
        return tuple(map(range, (0, *stops), stops))

    def island_at(self, device: int) -> int:
        """The number of the island that has a device id.

        Args:
          device: the id, from 0 over all islands.

        Raises:
          ClusterError: no device has it.
        """
        for index, ids in enumerate(self.island_ids):
            if device in ids:
                return index
        raise ClusterError(f"device {device} is not on cluster {self.name!r}, which has {self.devices}")

    def joint(self, first: int, second: int) -> Level:
        """The link between two islands.

        Args:
          first: the number of one of them, from 0.
          second: that of the other.
        """
        pair = (min(first, second), max(first, second))
        found = next((joint for joint in self.joints if (joint.first, joint.second) == pair), None)
        return found.level(len(self.members)) if found else self.levels[0]

    def island(self, submesh: Submesh) -> Cluster:
        """The island on which a submesh lies.

        Args:
          submesh: one of :meth:`submeshes`.

        Raises:
          ClusterError: there is none of that number.
        """
        if not 0 <= submesh.island < len(self.islands):
            raise ClusterError(
                f"submesh {submesh} is of island {submesh.island}, and cluster {self.name!r} has {len(self.islands)}, "
                "counted from 0; see Cluster.submeshes()"
            )
        return self.islands[submesh.island]

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """A cluster of preset devices, from ``<device>:<count>`` or ``<device>:<hosts>x<devices per host>``.

        One count is the number of devices; more than fit one host (one pod, for TPUs) fill several hosts. The
        devices are listed in :data:`autopar.mesh.PRESETS`. Islands of unlike devices are joined by ``+``, as by
        :meth:`joined`: ``v100-16gb:4x8+h100:2x8``. Sites are joined by one of :data:`autopar.mesh.LINKS`, named after
        a second colon, and come first: ``h100:2x16x8:metro`` is two sites of 16 hosts of 8 devices. What ends in
        ``.toml`` is the path of a file, as for :meth:`load`. After ``@`` stands a profile, as for :meth:`with_profile`:
        ``cpu:8@profile.json``.

        Args:
          text: as above.

        Raises:
          ClusterError: the device is unknown, the counts are malformed or not positive, or a host cannot hold
            that many devices; or a file is malformed.

        >>> [(level.name, level.size) for level in Cluster.parse("h100:16x8").levels]
        [('device', 8), ('host', 16)]
        """
        if isinstance(text, str) and text.strip().endswith(".toml") and ("+" not in text or os.path.exists(text)):
            return cls.load(text.strip())
        if isinstance(text, str) and "+" in text:
            return cls.joined([cls._parse_island(part, text) for part in text.split("+")])
        if isinstance(text, str) and "@" in text:
            base, _, profile = text.rpartition("@")
            return cls.parse(base).with_profile(profile.strip())
        name, device, levels = parse(text)
        return cls(name, device, levels)

    @classmethod
    def _parse_island(cls, part: str, text: str) -> Cluster:
        try:
            return cls.parse(part)
        except ClusterError as error:
            raise ClusterError(f"cluster {text!r} joins islands by '+', one of which is {part!r}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cluster:
        """A cluster from a TOML file: see ``docs/clusters.md`` for what it may say.

        Args:
          path: the file. Its name is the cluster's where it says none.

        Raises:
          ClusterError: the file cannot be read, or is malformed; the message names the line and the field.
        """
        return cls._of(read_cluster(path))

    def with_joints(self, joints: Sequence[Joint]) -> Cluster:
        """The same islands, each pair joined by a link of its own.

        Args:
          joints: one for each pair.
        """
        join = joining(joints, islands=len(self.members))
        alike = all((j.latency_s, j.bytes_per_s) == (join.latency_s, join.bytes_per_s) for j in joints)
        return replace(self, levels=(join,), joints=() if alike else tuple(joints))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML file that :meth:`load` reads back.

        Args:
          path: of the file.

        Raises:
          ClusterError: it was calibrated.
        """
        if any(island.device.rates for island in self.islands):
            raise ClusterError(f"cluster {self.name!r} was calibrated; save it as it was before with_profile")
        Path(path).write_text(cluster_text(self._described()), encoding="utf-8")

    def _described(self) -> Described:
        islands = tuple(Island(island.name, island.device, island.levels) for island in self.islands)
        return Described(self.name, islands, self.every_joint)

    @property
    def every_joint(self) -> tuple[Joint, ...]:
        """The link of each pair of islands."""
        pairs = itertools.combinations(range(len(self.members)), 2)
        links = ((*pair, self.joint(*pair)) for pair in pairs)
        return tuple(Joint(a, b, link.latency_s, link.bytes_per_s) for a, b, link in links)

    @classmethod
    def joined(
        cls, islands: Sequence[Cluster], *, latency_s: float | None = None, bytes_per_s: float | None = None
    ) -> Cluster:
        """A cluster of islands: clusters of equal devices, those of one unlike those of another.

        Without numbers, the link between islands is as slow as the slowest of those by which their own hosts are
        joined: the highest latency and the lowest bandwidth of the islands' outermost levels. For an island of one
        host it is the network that its preset would have.

        Args:
          islands: two or more. Equal ones stay apart: no stage reaches over both.
          latency_s: fixed time of a transfer from island to island.
          bytes_per_s: bandwidth per direction that each device has between islands while all of them communicate.

        Raises:
          ClusterError: fewer than two, an island of islands, or nothing says how an island is joined to others.

        >>> Cluster.joined([Cluster.parse("cpu:4"), Cluster.parse("cpu:2")], bytes_per_s=1e9).levels[0].bytes_per_s
        1000000000.0
        """
        islands = tuple(islands)
        if len(islands) < 2:
            raise ClusterError(
                f"Cluster.joined takes two or more clusters, not {[i.name for i in islands]}; use a single one as it is"
            )
        if latency_s is None or bytes_per_s is None:
            links = [outward(island.name, island.device, island.levels) for island in islands]
        else:
            links = [island.levels[-1] for island in islands]
        name = "+".join(island.name for island in islands)
        join = joining(links, latency_s, bytes_per_s)
        return cls(name, least([island.device for island in islands]), (join,), islands)

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
        """The same cluster with another memory capacity.

        Args:
          memory_bytes: of each device.
        """
        members = tuple(island.with_memory(memory_bytes) for island in self.members)
        return replace(self, device=replace(self.device, memory_bytes=memory_bytes), members=members)

    def with_profile(self, profile: Profile | str | os.PathLike[str]) -> Cluster:
        """The same cluster as its devices were measured: the rates of each, and the links inside a host.

        Links between hosts are as they were. Of islands, those of the profile's device are measured ones.

        Args:
          profile: what ``autopar calibrate`` wrote, or the path of its file.

        Raises:
          ClusterError: the profile is malformed, of another device, or of fewer devices than one host has.
        """
        profile = profile if isinstance(profile, Profile) else load_profile(profile)
        if any(island.device.name == profile.device for island in self.members):
            mine = (i.with_profile(profile) if i.device.name == profile.device else i for i in self.members)
            return replace(self, members=tuple(mine))
        device, levels = profiled(self.name, self.device, self.levels, profile)
        return replace(self, device=device, levels=levels)

    def mesh(self, shape: Sequence[int]) -> LogicalMesh:
        """A logical mesh over all devices, axis 0 outermost.

        Args:
          shape: axis sizes; their product is the number of devices.

        Raises:
          ClusterError: the product is not the number of devices, or these are of several islands.

        >>> Cluster.parse("h100:2x8").mesh((2, 8)).axes[0].levels[0].size
        2
        """
        if self.members:
            raise ClusterError(
                f"a mesh is of equal devices, and cluster {self.name!r} has {len(self.members)} islands; take the mesh "
                "of one of them: cluster.islands[0].mesh(...)"
            )
        shape = tuple(int(n) for n in shape)
        if not shape or any(n < 1 for n in shape) or math.prod(shape) != self.devices:
            raise ClusterError(
                f"mesh shape {shape} does not fit cluster {self.name!r}: its axis sizes multiply to "
                f"{math.prod(shape) if shape else 'nothing'}, and there are {self.devices} devices"
            )
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        axes = tuple(axis_links(self.levels, n, stride) for n, stride in zip(shape, strides, strict=True))
        return LogicalMesh(shape, axis_names(len(shape)), axes)

    def meshes(self, max_axes: int = 3) -> tuple[LogicalMesh, ...]:
        """Every logical mesh of 1 to ``max_axes`` axes of size over 1: fewer axes first, then by shape.

        One device has one mesh, of shape ``(1,)``.

        >>> [m.shape for m in Cluster.parse("cpu:4").meshes()]
        [(4,), (2, 2)]
        """
        if max_axes < 1:
            raise ClusterError(f"a mesh needs at least one axis, not max_axes={max_axes}")
        shapes = [s for axes in range(1, max_axes + 1) for s in factorisations(self.devices, axes)]
        return tuple(self.mesh(shape) for shape in shapes or [(1,)])

    def submeshes(self, *, powers: bool = False) -> tuple[Submesh, ...]:
        """Every shape that a pipeline stage may have, smallest first.

        - Within a host, the numbers of devices that divide the host's.
        - Hosts with all their devices: any number of them. Of more than two levels, only the outermost gives any
          number; the others give divisors, so that parts fill wholes.
        - Of islands, those of the first, of the second, and so on.

        Args:
          powers: of the outermost level, only divisors and powers of two: fewer shapes to plan on where there are
            many hosts.

        >>> [str(submesh) for submesh in Cluster.parse("h100:3x8").submeshes()]
        ['1', '2', '4', '8', '2x8', '3x8']
        """
        if self.members:
            found = (replace(s, island=i) for i, part in enumerate(self.members) for s in part.submeshes(powers=powers))
            return tuple(found)
        return tuple(submeshes_of([level.size for level in self.levels], powers))

    def part(self, submesh: Submesh) -> Cluster:
        """The devices of a submesh as a cluster of their own: the same device, the levels that lie inside.

        Raises:
          ClusterError: it is no submesh of this cluster.

        >>> cluster = Cluster.parse("h100:16x8")
        >>> cluster.part(cluster.submeshes()[4]).fingerprint == Cluster.parse("h100:2x8").fingerprint
        True
        """
        if self.members:
            return self.island(submesh).part(replace(submesh, island=0))
        self.island(submesh)
        check_submesh(self.name, [level.size for level in self.levels], submesh)
        if submesh.devices == self.devices:
            return self
        inside = zip(self.levels[: submesh.level + 1], submesh.sizes, strict=False)
        return Cluster(f"{self.name}[{submesh}]", self.device, tuple(replace(level, size=n) for level, n in inside))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts; infinities are the text ``"inf"``, so that the JSON is strict."""
        return encoding.described_to_dict(
            self._described(), self.levels[0] if self.members else None, bool(self.joints)
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """The inverse of :meth:`to_dict`.

        Args:
          data: what it returned.

        Raises:
          ClusterError: another version, or fields that are missing, unknown or of a wrong type.
        """
        found, join = encoding.described_from_dict(data)
        cluster = cls._of(found)
        return cluster if join is None or cluster.joints else replace(cluster, levels=(join,))

    @classmethod
    def _of(cls, found: Described) -> Cluster:
        islands = tuple(cls(island.name, island.device, island.levels) for island in found.islands)
        if len(islands) == 1:
            return replace(islands[0], name=found.name)
        device = least([island.device for island in islands])
        return cls(found.name, device, (joining(found.joints, islands=len(islands)),), islands).with_joints(
            found.joints
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of everything that prices a plan; independent of names and sources."""
        if self.members:
            return encoding.fingerprint_of(self.levels[0], [i.fingerprint for i in self.members], self.joints)
        return encoding.fingerprint(self.device, self.levels)
