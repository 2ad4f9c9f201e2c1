"""Layouts as jax shardings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar.errors import ClusterError
from autopar.plan import PlanFacts
from autopar.schedule import Buffer
from autopar.sharding.layout import Layout, dims


def partition_spec(layout: Layout, rank: int, names: Sequence[str]) -> PartitionSpec:
    """The PartitionSpec of a layout without partial sums, for a tensor of ``rank`` dims."""
    return _spec([tuple(names[a] for a in axes) for axes in dims(layout, rank)])


def buffer_spec(buffer: Buffer) -> PartitionSpec:
    """How a buffer of a stage is split."""
    return _spec(buffer.spec)


def _spec(split: Sequence[Sequence[str]]) -> PartitionSpec:
    """Per dim, the names of its axes; jax leaves out what is at the end and not split."""
    parts = [axes[0] if len(axes) == 1 else tuple(axes) or None for axes in split]
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
    need = math.prod(plan.mesh_shape)
    found = enough_devices(
        need, f"the plan is for {need} devices (mesh {'x'.join(map(str, plan.mesh_shape))})", devices
    )
    return Mesh(np.array(found).reshape(plan.mesh_shape), plan.axis_names)


def enough_devices(need: int, asked: str, devices: Sequence[jax.Device] | None = None) -> list[jax.Device]:
    """The first ``need`` devices.

    Args:
      need: how many.
      asked: who wants them, the start of the message.
      devices: the devices to use; by default those of ``jax.devices()``.

    Raises:
      ClusterError: there are fewer.
    """
    found = list(jax.devices() if devices is None else devices)
    if len(found) >= need:
        return found[:need]
    platform = f" {found[0].platform}" if found else ""
    count = f"{len(found)}{platform} device{'s' * (len(found) != 1)}"
    if devices is not None:
        raise ClusterError(
            f"{asked}, but devices=... holds {count}. Pass {need} devices, or ask for a smaller cluster."
        )
    raise ClusterError(
        f"{asked}, but jax sees {count}. Plan for a smaller cluster, or, to try it on a CPU, call "
        f'jax.config.update("jax_num_cpu_devices", {need}) before jax is first used.'
    )


def shardings(plan: PlanFacts, mesh: Mesh) -> tuple[tuple[NamedSharding, ...], tuple[NamedSharding, ...]]:
    """Shardings of the flat arguments (without captured constants) and of the flat results."""
    names = plan.axis_names

    def of(layout: Layout, rank: int) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(layout, rank, names))

    arguments = tuple(of(a.layout, len(a.shape)) for a in plan.arguments if a.kind != "constant")
    return arguments, tuple(of(r.layout, len(r.shape)) for r in plan.results)
