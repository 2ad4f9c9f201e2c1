"""From a traced step to the facts of its plan: in how many micro-batches, in stages or not, with what hints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from autopar.api.hinting import explained, with_hints
from autopar.api.sharing import Sharing
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


def search(
    traced: Traced,
    cluster: Cluster,
    options: Options,
    progress: Progress | None = None,
    sharing: Sharing | None = None,
) -> PlanFacts:
    """Plan a traced step: see :func:`autopar.api.planning.plan_traced`."""
    _check_islands(cluster, options)
    say = progress or (lambda _: None)
    if not options.known:
        return _searched(traced, cluster, options, say, sharing)
    known = sharing or Sharing(traced)  # so that hints are left out of the same step in its micro-batches

    def again(options: Options) -> PlanFacts:
        say(f"without {'its hints' if not options.known else 'a hint'}, to say what it costs")
        return _searched(traced, cluster, options, say, known)

    try:
        facts = _searched(traced, cluster, options, say, known)
    except InfeasibleError as error:
        raise explained(error, options, again) from None
    return with_hints(facts, options, again)


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


__all__ = ["Progress", "check_made_for", "search", "trace_step"]
