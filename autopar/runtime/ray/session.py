"""How this process gets into a Ray cluster: one that is there, or one started here that its last user ends."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import ray_constants

_CPUS = 1024  # a count for Ray's books: pipelines, and their stages, share the machine's cores
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


class _Started:
    """The Ray that was started here, and who uses it."""

    lock = threading.Lock()
    address: str | None = None
    users = 0


def enter(cpus: int = _CPUS) -> Callable[[], None]:
    """Joins the Ray that this process uses, or the one at RAY_ADDRESS, or starts one on this machine.

    Args:
      cpus: how many a Ray started here says that it has.

    Returns:
      What leaves it again. The last to leave a Ray that was started here ends it.
    """
    with _Started.lock:
        if not ray.is_initialized():
            _Started.address, _Started.users = _start(cpus), 0
        if not _is_ours():
            return lambda: None
        _Started.users += 1
        return _leave


def _leave() -> None:
    with _Started.lock:
        if not _is_ours():  # its user ended it
            return
        _Started.users -= 1
        if _Started.users == 0:
            ray.shutdown()


def _is_ours() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _Started.address


def _start(cpus: int) -> str | None:
    """The address of the Ray that was started here; None if one was joined."""
    with warnings.catch_warnings():
        # jax warns of every fork; Ray's child is replaced by another program at once and touches no jax.
        warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**_QUIET)
            return None
        with _told():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **_QUIET)
    return ray.get_runtime_context().gcs_address


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is started here listens on 127.0.0.1 only, reports no usage to Ray's makers, and leaves the cores alone.

    Ray starts its workers with a niceness of 15, which is for helpers beside a service; here they are the job itself.
    It also starts idle ones, which autopar cannot use, and has every process report metrics and each call, for a
    dashboard that is not there: together 3% of a core.

    ``ray.init`` turns an asked 127.0.0.1 into the machine's address and then listens on all interfaces, except where
    Ray believes that it cannot span machines; so it is told that. Its processes read the environment, this one a
    constant that was set when ray was imported.
    """
    told = {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
    }
    before = {name: os.environ.get(name) for name in told}
    constant, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(told)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
