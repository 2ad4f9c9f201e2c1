"""Layouts as jax shardings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar.errors import ClusterError
from autopar.plan import PlanFacts
from autopar.sharding.layout import Layout, dims


def partition_spec(layout: Layout, rank: int, names: Sequence[str]) -> PartitionSpec:
    """The PartitionSpec of a layout without partial sums, for a tensor of ``rank`` dims."""
    parts: list[str | tuple[str, ...] | None] = []
    for axes in dims(layout, rank):
        split = tuple(names[a] for a in axes)
        parts.append(split[0] if len(split) == 1 else split or None)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def device_mesh(plan: PlanFacts, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The plan's logical mesh over real devices, in order.

    Args:
      plan: the plan.
      devices: the devices to use; by default the first of ``jax.devices()``.

    Raises:
      ClusterError: there are fewer devices than the plan needs.
    """
    found = list(jax.devices() if devices is None else devices)
    need = math.prod(plan.mesh_shape)
    if len(found) < need:
        platform = found[0].platform if found else "no"
        raise ClusterError(
            f"the plan is for {need} devices (mesh {'x'.join(map(str, plan.mesh_shape))}), but jax sees "
            f"{len(found)} {platform} device{'s' * (len(found) != 1)}. Plan for a smaller cluster, or, to try it on a "
            f'CPU, call jax.config.update("jax_num_cpu_devices", {need}) before jax is first used.'
        )
    return Mesh(np.array(found[:need]).reshape(plan.mesh_shape), plan.axis_names)


def shardings(plan: PlanFacts, mesh: Mesh) -> tuple[tuple[NamedSharding, ...], tuple[NamedSharding, ...]]:
    """Shardings of the flat arguments (without captured constants) and of the flat results."""
    names = plan.axis_names

    def of(layout: Layout, rank: int) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(layout, rank, names))

    arguments = tuple(of(a.layout, len(a.shape)) for a in plan.arguments if a.kind != "constant")
    return arguments, tuple(of(r.layout, len(r.shape)) for r in plan.results)
