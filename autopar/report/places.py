"""Which links a mesh axis runs over, in words: ``in the host``, ``across hosts``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.mesh import Cluster, children_crossed
from autopar.plan import PlanFacts


def level_names(cluster: Cluster, device: int = 0) -> tuple[str, ...]:
    """What the levels of links are called on the island of a device, the innermost first.

    >>> level_names(Cluster.parse("h100:2x8"))
    ('device', 'host')
    """
    return tuple(level.name for level in cluster.islands[cluster.island_at(device)].levels)


def axes_place(plan: PlanFacts, axes: Sequence[str], levels: Sequence[str]) -> str:
    """Where the devices along some mesh axes are; nothing where all devices are joined alike.

    Args:
      plan: of one mesh: a whole plan without stages, or that of a stage.
      axes: names of mesh axes.
      levels: of links on the island that the plan is for, which may be larger than the stage (:func:`level_names`).

    Returns:
      ``in the host``, ``across hosts``, or nothing.
    """
    if len(levels) == 1:
        return ""
    outermost = max(_outermost(plan, axis) for axis in axes)
    return f"across {levels[outermost]}s" if outermost else f"in the {levels[1]}"


def _outermost(plan: PlanFacts, axis: str) -> int:
    """The outermost level that an axis crosses."""
    at = plan.axis_names.index(axis)
    sizes = tuple(level.size for level in Cluster.from_dict(plan.cluster).levels)
    crossed = children_crossed(sizes, plan.mesh[at].size, math.prod(plan.mesh_shape[at + 1 :]))
    return max((i for i, n in enumerate(crossed) if n > 1), default=0)
