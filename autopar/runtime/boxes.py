"""Which part of an array lies where, and who sends which part to whom. Index arithmetic; it needs no devices.

A *box* is a part of an array: per dim, where it starts and where it stops. A device holds one box of an array; devices
that hold equal boxes hold copies. The devices of a mesh lie on its *hosts* in equal runs, in order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.schedule import Buffer

Box = tuple[tuple[int, int], ...]
Mesh = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an array on its way.

    Attributes:
      device: position in the source's mesh of the device that it is taken from.
      taken: where it lies in that device's box.
      box: the box of the receiving host that it is a part of.
      placed: where it lies in that box.
    """

    device: int
    taken: Box
    box: Box
    placed: Box

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each dim."""
        return sizes(self.taken)


def sizes(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def slices(box: Box) -> tuple[slice, ...]:
    """The index of a box."""
    return tuple(slice(start, stop) for start, stop in box)


def boxes(buffer: Buffer, mesh: Mesh) -> tuple[Box, ...]:
    """The box of each device of the mesh, in order.

    >>> boxes(Buffer("x", (4, 2), "float32", (("a",), ()), "step"), (("a", 2),))
    (((0, 2), (0, 2)), ((2, 4), (0, 2)))
    """
    size = dict(mesh)
    found = []
    for position in range(math.prod(size.values())):
        coordinate, rest = {}, position
        for name, n in reversed(mesh):
            rest, coordinate[name] = divmod(rest, n)
        box = []
        for n, axes in zip(buffer.shape, buffer.spec, strict=True):
            part = 0
            for axis in axes:
                part = part * size[axis] + coordinate[axis]
            step = n // math.prod(size[axis] for axis in axes)
            box.append((part * step, (part + 1) * step))
        found.append(tuple(box))
    return tuple(found)


def routes(
    source: Sequence[Box], source_hosts: int, target: Sequence[Box], target_hosts: int
) -> dict[tuple[int, int], tuple[Piece, ...]]:
    """How an array goes from one mesh to another.

    Each receiving host gets every part of its boxes once, however many of its devices hold it. Where several hosts
    could send a part, the one that has sent least so far does.

    Args:
      source: the box of each sending device, in order.
      source_hosts: number of hosts that they lie on.
      target: the box of each receiving device, in order.
      target_hosts: number of hosts that they lie on.

    Returns:
      (sending host, receiving host) -> what goes between them, in the order in which it is sent.
    """
    owners: dict[Box, list[int]] = {}
    for device, box in enumerate(source):
        owners.setdefault(box, []).append(device)
    per_source, per_target = len(source) // source_hosts, len(target) // target_hosts
    sent: Counter[int] = Counter()
    found: dict[tuple[int, int], list[Piece]] = {}
    for host in range(target_hosts):
        for wanted in dict.fromkeys(target[host * per_target : (host + 1) * per_target]):
            for box, devices in owners.items():
                common = _common(box, wanted)
                if common is None:
                    continue
                device = min(devices, key=lambda d: sent[d // per_source])
                sent[device // per_source] += math.prod(sizes(common))
                piece = Piece(device, _within(common, box), wanted, _within(common, wanted))
                found.setdefault((device // per_source, host), []).append(piece)
    return {pair: tuple(pieces) for pair, pieces in found.items()}


def _common(a: Box, b: Box) -> Box | None:
    common = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def _within(inner: Box, outer: Box) -> Box:
    return tuple((start - base, stop - base) for (start, stop), (base, _) in zip(inner, outer, strict=True))
