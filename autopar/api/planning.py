"""From a step function to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from autopar.api.plan import Plan
from autopar.api.searching import Progress, search, trace_step
from autopar.api.sharing import Sharing
from autopar.calibrate import device_name
from autopar.errors import ClusterError, OptionError
from autopar.mesh import Cluster
from autopar.plan import PlanFacts
from autopar.planner import Options
from autopar.trace import Traced


def as_cluster(cluster: str | Cluster | None) -> Cluster:
    """A cluster from its name; None is the devices that jax sees in this process."""
    if isinstance(cluster, Cluster):
        return cluster
    return Cluster.parse(cluster if cluster is not None else local_cluster_name())


def local_cluster_name() -> str:
    """The name of the cluster made of this process's devices.

    Raises:
      ClusterError: they are of a kind that has no preset.
    """
    devices = jax.devices()
    name = device_name(devices[0])
    if name is not None:
        return f"{name}:{len(devices)}"
    raise ClusterError(f"no preset for device {devices[0].device_kind!r}; name the cluster, such as cluster='h100:8'.")


def plan(
    fun: Callable[..., Any],
    *args: Any,
    cluster: str | Cluster | None = None,
    options: Options | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Sequence[int] = (),
    progress: Progress | None = None,
    **kwargs: Any,
) -> Plan:
    """Plan a training step without running it.

    Args:
      fun: the step, written for one device.
      *args: its arguments: arrays or ``jax.ShapeDtypeStruct``; nothing is computed.
      cluster: ``"cpu:8"``, ``"h100:16x8"``, ``"v100-16gb:4x8+h100:2x8"`` (islands of unlike devices, for steps in
        stages), ``"h100:2x16x8:metro"`` (sites), ``"my.toml"`` (a file) or a :class:`autopar.Cluster`; None is the
        devices of this process.
      options: what to search.
      static_argnums, static_argnames, donate_argnums: as for ``jax.jit``.
      progress: called with lines of text while planning.
      **kwargs: keyword arguments of ``fun``.

    Returns:
      The plan: ``step_s``, ``peak_bytes`` (of one device), ``gap``, ``collectives``, ...

    Raises:
      TraceError: ``fun`` cannot be traced, or does something that cannot be spread.
      ClusterError: the cluster is unknown, or has islands and stages are not allowed.
      InfeasibleError: nothing fits into memory.

    Example:
      >>> import jax, jax.numpy as jnp, autopar
      >>> step = lambda w, x: w - 0.1 * jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
      >>> shapes = jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((512, 64), "float32")
      >>> found = autopar.plan(step, *shapes, cluster="h100:8")
      >>> found.devices
      8
    """
    check_settings(options)
    traced = trace_step(fun, args, kwargs, static_argnums, static_argnames, donate_argnums)
    return plan_traced(traced, as_cluster(cluster), options or Options(), progress)


def check_settings(options: Any, plan: Any = None) -> None:
    """Check that options and plan are what their names say.

    Raises:
      OptionError: they are something else.
    """
    if options is not None and not isinstance(options, Options):
        raise OptionError(f"options must be autopar.Options, such as autopar.Options(mesh=(2, 4)); found {options!r}.")
    if plan is not None and not isinstance(plan, PlanFacts):
        raise OptionError(
            f"plan must be what autopar.plan or autopar.load_plan returns; found {plan!r}. "
            "To run a plan from a file: plan=autopar.load_plan(path)."
        )


def plan_traced(
    traced: Traced,
    cluster: Cluster,
    options: Options,
    progress: Progress | None = None,
    sharing: Sharing | None = None,
) -> Plan:
    """Plan a traced step.

    With ``microbatches="auto"`` their number is doubled until two plans in a row are no faster, or do not exist.

    Args:
      traced: the step.
      cluster: where.
      options: how to search.
      progress: called with lines of text.
      sharing: what other plans of the same traced step have found out, and will.
    """
    return Plan.of(search(traced, cluster, options, progress, sharing), traced, options)


__all__ = ["as_cluster", "check_settings", "local_cluster_name", "plan", "plan_traced"]
