"""Logical meshes: devices arranged in a box.

Devices are laid out row-major: the last axis varies fastest and lies on the innermost, fastest links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autopar.mesh.links import AxisLinks

_NAMES = "xyzwvuts"


@dataclass(frozen=True, slots=True)
class LogicalMesh:
    """A box of devices.

    Attributes:
      shape: axis sizes; axis 0 is outermost (slowest links).
      names: axis names, ``x``, ``y``, ``z``.
      axes: the links of each axis.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    axes: tuple[AxisLinks, ...]

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)


def axis_names(axes: int) -> tuple[str, ...]:
    """Names of the axes of a mesh: ``x``, ``y``, ``z``, then ``w`` and on."""
    return tuple(_NAMES[:axes]) if axes <= len(_NAMES) else tuple(f"a{i}" for i in range(axes))


def factorisations(n: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Ordered ways to write ``n`` as a product of ``axes`` numbers over 1, in lexicographic order."""
    if axes == 1:
        if n > 1:
            yield (n,)
        return
    for first in range(2, n // 2 + 1):
        if n % first == 0:
            for rest in factorisations(n // first, axes - 1):
                yield (first, *rest)
