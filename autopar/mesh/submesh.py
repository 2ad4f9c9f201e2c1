"""Submeshes: the boxes of devices that a pipeline stage may get.

A submesh takes a few neighbouring children of one level and everything inside them: some devices of a host, or some
hosts with all their devices. Its device ids are therefore consecutive, and its links are those of the cluster. No
other box is needed: half the devices of each of two hosts share a slower link for nothing (Alpa, OSDI 2022, section
5.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.errors import ClusterError


@dataclass(frozen=True, slots=True, order=True)
class Submesh:
    """The shape of a part of a cluster. Where it lies is for :func:`autopar.mesh.place` to say.

    Attributes:
      sizes: per level of the cluster, innermost first, how many children it takes.
      island: of a cluster of islands, which one; its levels are meant then.

    >>> str(Submesh((8, 2))), Submesh((8, 2)).devices, Submesh((8, 2)).level
    ('2x8', 16, 1)
    """

    sizes: tuple[int, ...]
    island: int = 0

    def __str__(self) -> str:
        return "x".join(str(n) for n in reversed(self.sizes[: self.level + 1]))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.sizes)

    @property
    def level(self) -> int:
        """Index of the outermost level of which it takes more than one child; 0 for a single device."""
        return max((i for i, n in enumerate(self.sizes) if n > 1), default=0)


def submeshes_of(sizes: Sequence[int], powers: bool) -> Iterator[Submesh]:
    """The shapes described at :meth:`autopar.mesh.Cluster.submeshes`, smallest first.

    Args:
      sizes: of the cluster's levels, innermost first.
      powers: of the outermost level, only divisors and powers of two.
    """
    yield Submesh((1,) * len(sizes))
    for level, size in enumerate(sizes):
        every = 0 < level == len(sizes) - 1
        for n in range(2, size + 1):
            if size % n == 0 or (every and (not powers or n.bit_count() == 1)):
                yield Submesh((*sizes[:level], n, *(1,) * (len(sizes) - level - 1)))


def check_submesh(cluster: str, sizes: Sequence[int], submesh: Submesh) -> None:
    """Refuse what is no submesh of levels of these sizes.

    Raises:
      ClusterError: another number of levels, a count out of range, or a partly filled child of an outer level.
    """
    taken = submesh.sizes
    if (
        len(taken) != len(sizes)
        or not all(1 <= n <= size for n, size in zip(taken, sizes, strict=True))
        or taken[: submesh.level] != tuple(sizes[: submesh.level])
    ):
        raise ClusterError(
            f"sizes {taken} are no submesh of cluster {cluster!r}, whose levels have sizes {tuple(sizes)}, innermost "
            "first: a submesh takes some children of one level and all devices inside them; see Cluster.submeshes()"
        )
