"""The decorator, and ahead-of-time compilation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from autopar.api.executable import Executable
from autopar.api.plan import Plan
from autopar.api.planning import as_cluster, check_settings, plan_traced
from autopar.api.searching import Progress, trace_step
from autopar.api.staged import StagedExecutable
from autopar.errors import ClusterError, OptionError, PlanError, nearest
from autopar.lower import enough_devices
from autopar.mesh import Cluster
from autopar.planner import Options
from autopar.runtime import accelerator
from autopar.trace import Traced

RUNTIMES = ("local", "ray")


def compile(
    fun: Callable[..., Any],
    *args: Any,
    plan: Plan | None = None,
    cluster: str | Cluster | None = None,
    options: Options | None = None,
    devices: Sequence[jax.Device] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Sequence[int] = (),
    runtime: str = "local",
    progress: Progress | None = None,
    **kwargs: Any,
) -> Executable | StagedExecutable:
    """Compile a step under a plan, planning first if none is given.

    Args:
      fun: the step, written for one device.
      *args: its arguments: arrays or ``jax.ShapeDtypeStruct``.
      plan: a plan for these shapes, searched, loaded or written by hand.
      cluster: where to plan for, if there is no plan; None is the devices of this process.
      options: what to search, and the backend.
      devices: the devices to run on, default the first of ``jax.devices()``.
      static_argnums, static_argnames, donate_argnums: as for ``jax.jit``.
      runtime: ``local`` runs in this process; ``ray`` runs every stage in processes of a Ray cluster: the one at
        ``RAY_ADDRESS``, or one started on this machine.
      progress: called with lines of text while planning.
      **kwargs: keyword arguments of ``fun``.

    Returns:
      An :class:`Executable`, or of a plan with stages a :class:`StagedExecutable`: call it like ``fun``.

    Raises:
      ClusterError: the cluster is unknown, larger than the devices present, or for ``runtime="ray"`` of devices that
        Ray cannot tell apart.
      PlanError: the plan was made for another step, other shapes or another cluster.
      TraceError, InfeasibleError, SolverError: as :func:`autopar.plan`.
    """
    check_settings(options, plan)
    check_runtime(runtime)
    traced = trace_step(fun, args, kwargs, static_argnums, static_argnames, donate_argnums)
    return compile_traced(traced, plan, cluster, options or Options(), devices, runtime, progress)


def compile_traced(
    traced: Traced,
    plan: Plan | None,
    cluster: str | Cluster | None,
    options: Options,
    devices: Sequence[jax.Device] | None,
    runtime: str,
    progress: Progress | None,
) -> Executable | StagedExecutable:
    """Plan (if need be) and compile a traced step."""
    target = as_cluster(cluster) if plan is None else Cluster.from_dict(plan.cluster)
    if runtime == "ray":
        _check_types(target)
    if plan is None:
        if runtime == "local":
            asked = f"cluster {target.name!r} has {target.devices} devices"
            enough_devices(target.devices, asked, devices)  # before the search, which may take minutes
        elif options.stages is None and options.max_stages == 1:
            options = dataclasses.replace(options, stages=1)
        plan = plan_traced(traced, target, options, progress)
    elif cluster is not None and as_cluster(cluster).fingerprint != target.fingerprint:
        raise PlanError(
            f"the plan was made for cluster {target.name!r}, not for "
            f"{as_cluster(cluster).name!r}. Plan again for this cluster, or leave the cluster out."
        )
    elif isinstance(plan, Plan) and plan.traced is None:
        plan = dataclasses.replace(plan, traced=traced)  # a plan from a file can explain itself from now on
    if plan.stages:
        return StagedExecutable(traced, plan, devices=devices, runtime=runtime)
    if runtime != "local":
        raise PlanError(
            f"the plan has no stages, and runtime={runtime!r} runs stages. Plan with Options(stages=1), "
            "which is one stage on all devices, or leave the runtime out."
        )
    return Executable(traced, plan, backend=options.backend, devices=devices)


def _check_types(cluster: Cluster) -> None:
    """Ray tells hosts apart by the types of their GPUs.

    Raises:
      ClusterError: the cluster has unlike devices that Ray takes for one type.
    """
    kinds = dict.fromkeys(island.device.name for island in cluster.islands)
    if len({accelerator(kind) for kind in kinds}) < len(kinds):
        raise ClusterError(
            f"cluster {cluster.name!r} has devices {', '.join(kinds)}, and to Ray some of them are of one type, so "
            "runtime='ray' could not tell which hosts are meant. Join devices of different types, or use "
            "runtime='local', whose device ids say which is which."
        )


def check_runtime(runtime: str) -> None:
    """Check the name of a runtime.

    Raises:
      OptionError: there is none of that name.
    """
    if runtime not in RUNTIMES:
        raise OptionError(f"unknown runtime {runtime!r}: {nearest(str(runtime), RUNTIMES)}")


class Parallelized:
    """A step that is traced, planned and compiled at its first call, and run at every call.

    Attributes:
      executable: the compiled step, None before the first call.
    """

    def __init__(self, fun: Callable[..., Any], build: Callable[..., Executable | StagedExecutable]) -> None:
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._build = build
        self.executable: Executable | StagedExecutable | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step."""
        if self.executable is None:
            self.executable = self._build(self._fun, args, kwargs)
        return self.executable(*args, **kwargs)

    @property
    def plan(self) -> Plan:
        """The plan in force.

        Raises:
          PlanError: the step has not run yet, so there is none.
        """
        if self.executable is None:
            name = getattr(self._fun, "__name__", "the step")
            raise PlanError(
                f"{name} has not been called, so it has no plan yet. Call it once, or plan ahead with "
                f"autopar.plan({name}, ...)."
            )
        return self.executable.plan


def parallelize(
    fun: Callable[..., Any] | None = None,
    *,
    cluster: str | Cluster | None = None,
    options: Options | None = None,
    plan: Plan | None = None,
    devices: Sequence[jax.Device] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Sequence[int] = (),
    runtime: str = "local",
    progress: Progress | None = None,
) -> Any:
    """Spread a single-device training step over a cluster.

    Args:
      fun: the step; leave out to use as a decorator with settings.
      cluster: ``"cpu:8"``, ``"h100:8"``; None is the devices of this process.
      options: what to search, and the backend.
      plan: run this plan instead of searching.
      devices: the devices to run on, default the first of ``jax.devices()``.
      static_argnums, static_argnames: as for ``jax.jit``.
      donate_argnums: arguments whose buffers the step may reuse. What lies as planned, such as the state that the
        last call returned, is given away; what lies otherwise (numpy arrays, the first state on one device) is
        copied to its devices, and the original stays usable.
      runtime: ``local`` runs in this process; ``ray`` runs every stage in processes of a Ray cluster, see
        :func:`compile`. :func:`shutdown` ends them.
      progress: called with lines of text while planning.

    Returns:
      A :class:`Parallelized`, called like the step; ``.plan`` is what it runs, once it has been called. Without
      ``fun``, a decorator that makes one.

    Raises:
      ClusterError: the cluster is unknown, at once; or larger than the devices present, at the first call.

    Example:
      >>> import jax, jax.numpy as jnp, autopar
      >>> @autopar.parallelize(cluster=f"cpu:{jax.device_count()}")
      ... def step(w, x):
      ...     return w - 0.1 * jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)
      >>> step(jnp.ones((8, 8)), jnp.ones((16, 8))).shape
      (8, 8)
    """
    if fun is not None and not callable(fun):
        raise OptionError(
            f"autopar.parallelize spreads a function, not {fun!r}. Settings are named: "
            "@autopar.parallelize(cluster='cpu:8')."
        )
    check_settings(options, plan)
    check_runtime(runtime)
    target = as_cluster(cluster) if cluster is not None else None
    build = functools.partial(
        _compile_call,
        plan=plan,
        cluster=target,
        options=options or Options(),
        devices=devices,
        static=(static_argnums, static_argnames, donate_argnums),
        runtime=runtime,
        progress=progress,
    )
    if fun is None:
        return lambda f: Parallelized(f, build)
    return Parallelized(fun, build)


def _compile_call(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    plan: Plan | None,
    cluster: Cluster | None,
    options: Options,
    devices: Sequence[jax.Device] | None,
    static: tuple[Any, Any, Any],
    runtime: str,
    progress: Progress | None,
) -> Executable | StagedExecutable:
    traced = trace_step(fun, args, kwargs, *static)
    return compile_traced(traced, plan, cluster, options, devices, runtime, progress)
