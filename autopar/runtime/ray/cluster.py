"""Getting processes from Ray: a placement group with one bundle per host, an actor on each, and their end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from autopar.errors import ClusterError

_GRANT_S = 15.0
_END_S = 5.0
# glibc gives the memory of large arrays back to the system and asks for it again every step, page by page.
_KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
_TYPE = "accelerator_type:"  # of a node that Ray knows the GPUs of; one in all, so hosts ask for little of it


def bundle(devices: int, platform: str, accelerator: str | None = None) -> dict[str, float]:
    """What one host of a worker takes of a node.

    Args:
      devices: of the host.
      platform: ``cpu``, or ``cuda`` with a GPU per device.
      accelerator: Ray's name of the GPUs that they must be; None if any will do.

    >>> bundle(8, "cuda", "V100")
    {'CPU': 1, 'GPU': 8, 'accelerator_type:V100': 0.001}
    """
    found: dict[str, float] = {"CPU": 1} if platform == "cpu" else {"CPU": 1, "GPU": devices}
    return found if accelerator is None else {**found, f"{_TYPE}{accelerator}": 0.001}


def reserve(bundles: Sequence[Mapping[str, float]]) -> PlacementGroup:
    """One bundle of resources per host.

    Raises:
      ClusterError: Ray does not have them, or they are taken.
    """
    total = _total(bundles)
    asked = f"the pipeline needs {len(bundles)} actors with {_words(total)} in all"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = "; ".join(_words(node) for node in nodes)
    if not _fits(bundles, nodes):
        raise ClusterError(
            f"{asked}, and the Ray cluster's nodes have {there}. Plan for a smaller cluster, or add nodes to Ray."
        )
    free = ray.available_resources()
    if any(free.get(name, 0) < n for name, n in total.items()):
        raise ClusterError(
            f"{asked}, and of what the Ray cluster has ({there}) only {_words(free)} are free. End what holds the "
            f"rest, or wait for it."
        )
    group = placement_group([dict(bundle) for bundle in bundles], strategy="SPREAD")
    if not group.wait(_GRANT_S):
        remove_placement_group(group)
        raise ClusterError(
            f"{asked}, and Ray did not grant them within {_GRANT_S:g} s, although its nodes have {there}. Other "
            f"jobs may have taken them meanwhile; `ray status` shows who holds what."
        )
    return group


def addresses() -> dict[str, str]:
    """The address of each node, by its id: the one that Ray itself uses, so a loopback cluster stays on loopback."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def actors(
    kind: type,
    group: PlacementGroup,
    bundles: Sequence[Mapping[str, float]],
    environments: Sequence[Mapping[str, str]],
) -> list[Any]:
    """One actor of class ``kind`` per bundle, each in a process with its own environment."""
    remote: Any = ray.remote(kind)
    found = []
    for number, (bundle, variables) in enumerate(zip(bundles, environments, strict=True)):
        options: dict[str, Any] = {
            "num_cpus": bundle.get("CPU", 0),
            "num_gpus": bundle.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, number),
            "runtime_env": {"env_vars": dict(variables)},
            "max_concurrency": 8,  # steps in flight, and mail
            "max_restarts": 0,
        }
        found.append(remote.options(**options).remote())
    return found


def environment(platform: str, devices: int) -> dict[str, str]:
    """What an actor's process must know before jax starts in it."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ.get("XLA_FLAGS", ""))
    found = {
        "JAX_PLATFORMS": platform,
        "JAX_ENABLE_X64": str(int(jax.config.read("jax_enable_x64"))),
        "XLA_FLAGS": " ".join(flags.split()),
        **{name: os.environ.get(name, value) for name, value in _KEEPING.items()},
    }
    if platform == "cpu":
        found["JAX_NUM_CPU_DEVICES"] = str(devices)
        # XLA runs the devices of one process in a pool of NPROC threads. With fewer threads than devices, a
        # collective waits forever for a device that has no thread. With more threads than a device has cores, they
        # take turns with its micro-batches, and the first is as late as the last: who pins stages to cores sets it.
        found["NPROC"] = str(max(devices, int(os.environ.get("NPROC") or os.cpu_count() or 1)))
    return found


def machine() -> str:
    """Equal exactly for processes that see each other's process ids, so containers of one host differ."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, where there is one space of process ids
        return os.uname().nodename


def release(handles: Sequence[Any], group: PlacementGroup | None, pids: Sequence[int]) -> None:
    """Ends actors and gives their bundles back.

    Args:
      handles: the actors.
      group: their placement group.
      pids: processes of actors on this machine: those still there after a while are killed, as a process inside
        jax.distributed does not end on SIGTERM.
    """
    if ray.is_initialized():
        for handle in handles:
            ray.kill(handle)
        if group is not None:
            remove_placement_group(group)
    until = time.monotonic() + _END_S
    while (alive := [pid for pid in pids if _alive(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _total(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(b.get(name, 0) for b in bundles) for name in dict.fromkeys(n for b in bundles for n in b)}


def _fits(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether the bundles fit onto the nodes: largest first, each where most is left."""
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda b: -sum(b.values())):
        able = [node for node in left if all(node.get(name, 0) >= n for name, n in bundle.items())]
        if not able:
            return False
        best = max(able, key=lambda node: min((node[name] for name in bundle), default=0))
        for name, n in bundle.items():
            best[name] -= n
    return True


def _words(resources: Mapping[str, float]) -> str:
    counts = ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources)
    types = " and ".join(sorted(name.removeprefix(_TYPE) for name in resources if name.startswith(_TYPE)))
    return f"{counts or 'nothing'}{f' ({types})' if types else ''}"
