"""Where the stages of a pipeline lie: consecutive device ids for each, and the link between two of them.

Level by level, innermost first, what is smaller than a block (a host) is packed into blocks that are filled exactly;
a filled block then is one piece of the next level. Pieces keep the order of the stages wherever that fills the blocks,
so that neighbouring stages are neighbours on the cluster. Islands are filled one by one, each by its own stages.

A block is opened by the earliest piece left and takes every later piece that still fits. Where sizes are powers of two
that fills it: were ``r`` devices left, every piece left would be a multiple of the power of two above ``r``, and so
would ``r``. Other sizes (hosts of 6 devices) may need the search that follows.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from autopar.errors import ClusterError
from autopar.mesh.cluster import Cluster
from autopar.mesh.links import Level
from autopar.mesh.submesh import Submesh, check_submesh


class _Piece(NamedTuple):
    """Stages that lie side by side: ``size`` devices, and (stage, offset of its first device) for each."""

    first: float  # the earliest stage; inf for idle devices
    size: int
    stages: tuple[tuple[int, int], ...]


def place(cluster: Cluster, submeshes: Sequence[Submesh]) -> tuple[range, ...]:
    """Give every stage its devices.

    Args:
      cluster: where.
      submeshes: of the stages, in order. They may leave devices idle.

    Returns:
      Per stage, its device ids: disjoint, on its island, and within one host where the submesh is smaller than a
      host.

    Raises:
      ClusterError: they need more devices than there are, or sizes that cannot fill the hosts, or an island that
        there is not.

    >>> from autopar.mesh import Cluster
    >>> half, host = Submesh((4, 1)), Submesh((8, 1))
    >>> place(Cluster.parse("h100:2x8"), [half, host, half])
    (range(0, 4), range(8, 16), range(4, 8))
    >>> place(Cluster.parse("v100-16gb:8+h100:8"), [Submesh((8,), island=1), Submesh((8,), island=0)])
    (range(8, 16), range(0, 8))
    """
    for submesh in submeshes:
        cluster.island(submesh)
    found = [range(0)] * len(submeshes)
    for index, (island, ids) in enumerate(zip(cluster.islands, cluster.island_ids, strict=True)):
        mine = [i for i, submesh in enumerate(submeshes) if submesh.island == index]
        for i, inside in zip(mine, _placed(island, [submeshes[i] for i in mine]), strict=True):
            found[i] = ids[inside.start : inside.stop]
    return tuple(found)


def _placed(cluster: Cluster, submeshes: Sequence[Submesh]) -> tuple[range, ...]:
    """As :func:`place`, on equal devices."""
    sizes = tuple(level.size for level in cluster.levels)
    for submesh in submeshes:
        check_submesh(cluster.name, sizes, submesh)
    idle = cluster.devices - sum(submesh.devices for submesh in submeshes)
    if idle < 0:
        raise ClusterError(
            f"the stages take {cluster.devices - idle} devices and cluster {cluster.name!r} has {cluster.devices}: "
            f"{' + '.join(map(str, submeshes))}"
        )
    pieces = [_Piece(math.inf, 1, ())] * idle
    for level in range(len(sizes)):
        block = math.prod(sizes[: level + 1])
        pieces += [_Piece(i, s.devices, ((i, 0),)) for i, s in enumerate(submeshes) if s.level == level]
        blocks = _packed(sorted(pieces), block)
        if blocks is None:
            raise ClusterError(
                f"no arrangement of the stages {', '.join(map(str, submeshes))} fills the blocks of {block} devices "
                f"of cluster {cluster.name!r}; choose sizes that divide each other"
            )
        pieces = [_joined(pieces) for pieces in blocks]
    (whole,) = pieces
    firsts = dict(whole.stages)
    return tuple(range(firsts[i], firsts[i] + submesh.devices) for i, submesh in enumerate(submeshes))


def link_between(cluster: Cluster, source: range, target: range) -> Level | None:
    """The links that an array crosses on its way from one stage to another.

    Args:
      cluster: where they lie.
      source, target: device ids of two stages, as :func:`place` gives them.

    Returns:
      The outermost level that some pair of devices crosses, between islands the one that joins them; None where both
      have the same devices.

    Raises:
      ClusterError: they share some devices, not all, or are not on the cluster.
    """
    if source == target:
        return None
    low, high = min(source.start, target.start), max(source.stop, target.stop) - 1
    if high - low + 1 < len(source) + len(target):
        raise ClusterError(f"stages on devices {source} and {target} overlap; two stages share all devices or none")
    index = cluster.island_at(high)
    if cluster.island_at(low) != index:
        return cluster.joint(cluster.island_at(low), index)
    start = cluster.island_ids[index].start
    return _crossed(cluster.islands[index], low - start, high - start)


def _crossed(cluster: Cluster, low: int, high: int) -> Level:
    """The outermost level between two devices of equal ones."""
    blocks = itertools.accumulate((level.size for level in cluster.levels), operator.mul)
    return next(level for level, block in zip(cluster.levels, blocks, strict=True) if low // block == high // block)


def _joined(pieces: Sequence[_Piece]) -> _Piece:
    """One block: the pieces side by side, in order."""
    stages, offset = [], 0
    for piece in pieces:
        stages += [(stage, offset + at) for stage, at in piece.stages]
        offset += piece.size
    return _Piece(pieces[0].first, offset, tuple(stages))


def _packed(pieces: Sequence[_Piece], block: int) -> list[list[_Piece]] | None:
    """The pieces, sorted, in blocks of exactly ``block`` devices; None where that is impossible."""
    return _packed_in_order(pieces, block) or _packed_by_size(pieces, block)


def _packed_in_order(pieces: Sequence[_Piece], block: int) -> list[list[_Piece]] | None:
    blocks, left = [], list(pieces)
    while left:
        taken: list[_Piece] = []
        rest: list[_Piece] = []
        room = block
        for piece in left:
            fits = piece.size <= room
            (taken if fits else rest).append(piece)
            room -= piece.size * fits
        if room:
            return None
        blocks.append(taken)
        left = rest
    return blocks


def _packed_by_size(pieces: Sequence[_Piece], block: int) -> list[list[_Piece]] | None:
    """As :func:`_packed_in_order`, by exact search over how many pieces of each size go into each block."""
    counts = Counter(piece.size for piece in pieces)
    sizes = tuple(sorted(counts, reverse=True))
    fillings = _fillings(sizes, tuple(counts[size] for size in sizes), block)
    if fillings is None:
        return None
    waiting = {size: [piece for piece in pieces if piece.size == size] for size in sizes}
    blocks, open_fillings = [], list(fillings)
    while open_fillings:
        next_size = min((size for size in sizes if waiting[size]), key=lambda size: waiting[size][0])
        filling = next(f for f in open_fillings if f[sizes.index(next_size)])
        open_fillings.remove(filling)
        blocks.append(sorted(waiting[size].pop(0) for size, n in zip(sizes, filling, strict=True) for _ in range(n)))
    return blocks


@functools.lru_cache(maxsize=100_000)
def _fillings(sizes: tuple[int, ...], counts: tuple[int, ...], block: int) -> tuple[tuple[int, ...], ...] | None:
    """Per block, how many of each size it holds, so that all are used and every block is full."""
    if not any(counts):
        return ()
    for filling in _exact(sizes, counts, block):
        if filling[next(i for i, n in enumerate(counts) if n)]:  # some block holds the largest: let it be this one
            rest = _fillings(sizes, tuple(n - m for n, m in zip(counts, filling, strict=True)), block)
            if rest is not None:
                return (filling, *rest)
    return None


@functools.lru_cache(maxsize=100_000)
def _exact(sizes: tuple[int, ...], counts: tuple[int, ...], room: int) -> tuple[tuple[int, ...], ...]:
    """The ways to fill ``room`` exactly, most of the largest first."""
    if not sizes:
        return () if room else ((),)
    most = min(counts[0], room // sizes[0])
    return tuple((n, *rest) for n in range(most, -1, -1) for rest in _exact(sizes[1:], counts[1:], room - n * sizes[0]))
