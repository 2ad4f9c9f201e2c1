"""From a step function to a plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from autopar.api.hinting import explained, with_hints
from autopar.api.plan import Plan
from autopar.api.sharing import Sharing
from autopar.calibrate import device_name
from autopar.errors import AutoparError, ClusterError, InfeasibleError, OptionError, PlanError
from autopar.lower import microbatched
from autopar.mesh import Cluster
from autopar.partition import chunks_for, examples_of, stacked_lengths
from autopar.plan import PipelineRunnerUp, PlanFacts
from autopar.planner import Options, plan_stages, plan_step
from autopar.trace import Traced, trace

Progress = Callable[[str], None]

_SLOWER = 2  # so many numbers of micro-batches in a row that help no more end the search for one
_RUNNERS_UP = 6


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


def trace_step(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: int | Sequence[int],
    static_argnames: str | Iterable[str],
    donate_argnums: int | Sequence[int],
) -> Traced:
    """Trace with the conventions of ``jax.jit`` for argument numbers."""
    if not callable(fun):
        raise OptionError(f"the step must be a function of arrays; found {fun!r}.")
    for name, numbers in (("static_argnums", static_argnums), ("donate_argnums", donate_argnums)):
        if isinstance(numbers, str) or not all(isinstance(n, int) for n in _numbers(numbers)):
            raise OptionError(
                f"{name} must hold positions of the step's arguments, such as 0 or (0, 1); found {numbers!r}."
            )
    return trace(
        fun,
        tuple(args),
        dict(kwargs),
        static_argnums=_numbers(static_argnums),
        static_argnames=(static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames),
        donate_argnums=_numbers(donate_argnums),
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
    _check_islands(cluster, options)
    say = progress or (lambda _: None)
    if not options.known:
        return Plan.of(_searched(traced, cluster, options, say, sharing), traced, options)
    known = sharing or Sharing(traced)  # so that hints are left out of the same step in its micro-batches

    def again(options: Options) -> PlanFacts:
        say(f"without {'its hints' if not options.known else 'a hint'}, to say what it costs")
        return _searched(traced, cluster, options, say, known)

    try:
        facts = _searched(traced, cluster, options, say, known)
    except InfeasibleError as error:
        raise explained(error, options, again) from None
    return Plan.of(with_hints(facts, options, again), traced, options)


def _searched(traced: Traced, cluster: Cluster, options: Options, say: Progress, sharing: Sharing | None) -> PlanFacts:
    """The plan, in the number of micro-batches that is asked for or best."""
    if options.microbatches != "auto":
        return _planned(traced, cluster, options, int(options.microbatches), say, sharing)
    found: list[PlanFacts] = []
    failures: list[AutoparError] = []
    slower = 0
    for count in _doublings(examples_of(traced.step)):
        try:
            facts = _planned(traced, cluster, options, count, say, sharing)
        except (InfeasibleError, OptionError, PlanError) as error:
            failures.append(error)
            say(f"{count} micro-batches: {error}")
            slower += bool(found)
        else:
            say(f"{count} micro-batches: {facts.step_s:.4g} s")
            slower = slower + 1 if found and facts.step_s >= min(f.step_s for f in found) else 0
            found.append(facts)
        if slower == _SLOWER:
            break
    if not found:
        raise failures[-1]
    best = min(found, key=lambda f: f.step_s)
    others = [r for f in found for r in (*_as_runner_up(f, best), *f.other_pipelines)]
    return dataclasses.replace(best, other_pipelines=tuple(sorted(others, key=lambda r: r.step_s)[:_RUNNERS_UP]))


def check_made_for(plan: PlanFacts, traced: Traced) -> None:
    """Check that a plan was made for a step, in the micro-batches that it has.

    Raises:
      PlanError: it was made for another step, or for other shapes.
    """
    written = traced if plan.stages else microbatched(traced, plan.microbatches, per_microbatch=plan.per_microbatch)
    found = written.step.graph.fingerprint
    if plan.fingerprint != found:
        raise PlanError(
            f"the plan was made for another step than this {traced.step.name!r}, or for other shapes (fingerprint "
            f"{plan.fingerprint[:8]}, this step {found[:8]}). Name the model and sizes that it was made for, or plan "
            "again."
        )


def _check_islands(cluster: Cluster, options: Options) -> None:
    """One stage is spread evenly over its devices, so it lies on one island.

    Raises:
      ClusterError: one stage was asked for, on a cluster of several islands.
    """
    if len(cluster.islands) == 1 or (options.stages or options.max_stages) > 1:
        return
    fewest = f"max_stages={len(cluster.islands)}"
    raise ClusterError(
        f"cluster {cluster.name!r} has {len(cluster.islands)} islands of devices, "
        f"{', '.join(island.name for island in cluster.islands)}, and a step without stages is spread over equal "
        f"devices only. Allow stages, each of which lies on one island: Options(microbatches=8, {fewest}), on the "
        "command line --microbatches and --max-stages; or plan for one of the islands alone."
    )


def _doublings(examples: int) -> list[int]:
    """1, 2, 4, ... as far as they divide the batch."""
    found = [1]
    while examples and examples % (2 * found[-1]) == 0:
        found.append(2 * found[-1])
    return found


def _as_runner_up(facts: PlanFacts, best: PlanFacts) -> list[PipelineRunnerUp]:
    """What a plan of stages leaves in the plan that was faster."""
    if facts is best or not facts.stages:
        return []
    stages = tuple((s.units[1] - s.units[0], s.devices[1] - s.devices[0]) for s in facts.stages)
    return [PipelineRunnerUp(stages, facts.schedule, facts.microbatches, facts.step_s, facts.peak_bytes)]


def _planned(
    traced: Traced, cluster: Cluster, options: Options, microbatches: int, say: Progress, sharing: Sharing | None
) -> PlanFacts:
    """Plan with so many micro-batches."""
    options = dataclasses.replace(options, microbatches=microbatches)
    known, per_microbatch = sharing or Sharing(traced), options.per_microbatch
    if options.stages is not None or options.max_stages > 1:
        chunks = chunks_for(stacked_lengths(traced.step), options.stages or options.max_stages)
        staged = known.staged(microbatches, chunks, per_microbatch=per_microbatch)
        shared = sharing.shared(staged, options) if sharing is not None else None
        facts = plan_stages(staged, cluster, options, say, shared)
        facts = dataclasses.replace(facts, chunks=chunks, fingerprint=traced.step.graph.fingerprint)
    else:
        _check_shards(traced, cluster, options, microbatches)
        written = known.written(microbatches, per_microbatch=per_microbatch)
        facts = plan_step(written.step, cluster, options, say)
    return dataclasses.replace(
        facts,
        warnings=(*traced.notes, *facts.warnings),
        microbatches=microbatches,
        per_microbatch=per_microbatch,
    )


def _check_shards(traced: Traced, cluster: Cluster, options: Options, count: int) -> None:
    """Strategy ``data`` in micro-batches gives every device as much of each.

    Raises:
      PlanError: there are not enough examples; the message says which numbers would do.
    """
    examples = examples_of(traced.step)
    devices = math.prod(options.mesh) if options.mesh else cluster.devices
    if options.strategy != "data" or count == 1 or examples % count or not examples % (count * devices):
        return
    fitting = [str(m) for m in range(1, examples // devices + 1) if not examples % (m * devices)]
    counts = f", microbatches={' or '.join(fitting)}" if fitting else ""
    raise PlanError(
        f"strategy 'data' cuts every micro-batch into equal parts for {devices} devices, but a batch of {examples} in "
        f"{count} micro-batches leaves {examples // count} examples to divide. Use a batch that is a multiple of "
        f"{count * devices}{counts}, or strategy 'auto', which may divide other dims."
    )


def _numbers(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)
