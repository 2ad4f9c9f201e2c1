"""The schedules: who runs what in which order.

Micro-batches are accumulated in the order 0, 1, 2, ... on every stage by every schedule, so that gradients do not
depend on the choice of one. All but ``interleaved`` put stage ``s`` on worker ``s``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from autopar.errors import OptionError
from autopar.schedule.task import Kind, Schedule, Task


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All forward passes, then all backward passes (Huang et al. 2019). Every micro-batch is held at the turn.

    >>> [" ".join(map(str, tasks)) for tasks in gpipe(2, 2).workers]
    ['F0.0 F0.1 B0.0 B0.1', 'F1.0 F1.1 B1.0 B1.1']

    Raises:
      OptionError: a count is not a positive integer.
    """
    _check_counts(stages=stages, microbatches=microbatches)
    lists = tuple(
        (*_tasks(Kind.FORWARD, stage, microbatches), *_tasks(Kind.BACKWARD, stage, microbatches))
        for stage in range(stages)
    )
    return Schedule("gpipe", stages, microbatches, lists)


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """One forward, one backward (PipeDream-flush, Narayanan et al. 2021): as fast as GPipe, and holds less.

    Stage ``s`` starts with ``stages - 1 - s`` forward passes; so it never holds more than ``stages - s`` micro-batches.

    >>> [" ".join(map(str, tasks)) for tasks in one_f_one_b(2, 3).workers]
    ['F0.0 F0.1 B0.0 F0.2 B0.1 B0.2', 'F1.0 B1.0 F1.1 B1.1 F1.2 B1.2']

    Raises:
      OptionError: a count is not a positive integer.
    """
    _check_counts(stages=stages, microbatches=microbatches)
    return Schedule("1f1b", stages, microbatches, tuple(_one_f_one_b(stages, microbatches)))


def interleaved(stages: int, microbatches: int, workers: int) -> Schedule:
    """Interleaved 1F1B (Narayanan et al. 2021, section 2.2): several stages on a worker, for a shorter ramp.

    Stage ``s`` is on worker ``s % workers``. Micro-batches go in rounds (``rounds``); a worker runs a round through
    its first stage, then through its second, and so on. Worker ``w`` starts with ``(chunks - 1) * round + 2 * (workers
    - 1 - w)`` forward passes, where ``round`` is the length of the longest round and ``chunks`` the number of stages on
    a worker; then forward and backward passes take turns. 1 in place of 2 would do if transfers took no time; 2, as in
    Megatron-LM, hides them behind work.

    Where micro-batches divide among the workers this is Megatron-LM's order. Where they do not, rounds are longer than
    the line of workers, not shorter: with equal stages and at least as many micro-batches as workers, a worker idles
    for ``workers - 1`` forward and backward passes of one stage in either case, ``chunks`` times less than under 1F1B.

    Args:
      stages: a multiple of ``workers``. With one stage on each worker this is plain 1F1B.
      microbatches: any number.
      workers: how many workers there are.

    >>> [" ".join(map(str, tasks)) for tasks in interleaved(4, 2, 2).workers]
    ['F0.0 F0.1 F2.0 F2.1 B2.0 B2.1 B0.0 B0.1', 'F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 B1.0 B1.1']

    Raises:
      OptionError: a count is not a positive integer, or the stages do not divide among the workers.
    """
    _check_counts(stages=stages, microbatches=microbatches, workers=workers)
    if stages % workers:
        down = stages - stages % workers
        near = f"{down} or {down + workers}" if down else f"{workers}"
        raise OptionError(
            f"schedule 'interleaved' gives every worker equally many stages; {stages} stages do not divide among "
            f"{workers} workers. Take {near} stages"
        )
    if stages == workers:
        lists = tuple(_one_f_one_b(stages, microbatches))
    else:
        lists = tuple(_interleaved(stages, microbatches, workers, worker) for worker in range(workers))
    return Schedule("interleaved", stages, microbatches, lists)


def zb_h1(stages: int, microbatches: int) -> Schedule:
    """Zero bubble H1 (Qi et al. 2023): 1F1B that hands gradients on first and computes those of parameters later.

    Stage ``s`` runs the weight task of micro-batch ``m`` after the backward task of ``m + s``. So the last stages,
    which start late, catch up at first and have work left at the end, where they would idle; and no stage holds more
    than ``stages`` micro-batches, which is what the first stage holds under 1F1B. With equal stages, at least as many
    micro-batches, and weight tasks (W) no longer than forward (F) and backward tasks (B), a worker idles for
    ``(stages - 1) * (F + B - W)``; under 1F1B for ``(stages - 1) * (F + B + W)``.

    >>> [" ".join(map(str, tasks)) for tasks in zb_h1(2, 2).workers]
    ['F0.0 F0.1 B0.0 W0.0 B0.1 W0.1', 'F1.0 B1.0 F1.1 B1.1 W1.0 W1.1']

    Raises:
      OptionError: a count is not a positive integer.
    """
    _check_counts(stages=stages, microbatches=microbatches)
    lists = tuple(tuple(_with_weights(tasks, microbatches)) for tasks in _one_f_one_b(stages, microbatches))
    return Schedule("zb-h1", stages, microbatches, lists)


def inference(stages: int, microbatches: int) -> Schedule:
    """Forward passes only.

    >>> [" ".join(map(str, tasks)) for tasks in inference(2, 2).workers]
    ['F0.0 F0.1', 'F1.0 F1.1']

    Raises:
      OptionError: a count is not a positive integer.
    """
    _check_counts(stages=stages, microbatches=microbatches)
    lists = tuple(tuple(_tasks(Kind.FORWARD, stage, microbatches)) for stage in range(stages))
    return Schedule("inference", stages, microbatches, lists)


def rounds(microbatches: int, workers: int) -> list[range]:
    """The rounds in which ``interleaved`` takes micro-batches: as many as can have ``workers`` or more each, evenly.

    A round shorter than the line of workers would leave them idle at every turn to the next stage, and stalls those
    before it. The longest round comes first.

    >>> rounds(8, 4), rounds(11, 4), rounds(3, 4)
    ([range(0, 4), range(4, 8)], [range(0, 6), range(6, 11)], [range(0, 3)])
    """
    many = max(1, microbatches // workers)
    short, longer = divmod(microbatches, many)
    starts = [short * i + min(i, longer) for i in range(many + 1)]
    return [range(first, end) for first, end in itertools.pairwise(starts)]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise OptionError(f"a schedule of {name}={count!r} was asked for; it must be a whole number, 1 or more")


def _tasks(kind: Kind, stage: int, microbatches: int) -> list[Task]:
    return [Task(kind, stage, m) for m in range(microbatches)]


def _one_f_one_b(stages: int, microbatches: int) -> Iterator[tuple[Task, ...]]:
    for stage in range(stages):
        forwards = _tasks(Kind.FORWARD, stage, microbatches)
        backwards = _tasks(Kind.BACKWARD, stage, microbatches)
        yield _alternating(forwards, backwards, stages - 1 - stage)


def _interleaved(stages: int, microbatches: int, workers: int, worker: int) -> tuple[Task, ...]:
    held, batches = range(worker, stages, workers), rounds(microbatches, workers)
    forwards = [Task(Kind.FORWARD, s, m) for batch in batches for s in held for m in batch]
    backwards = [Task(Kind.BACKWARD, s, m) for batch in batches for s in reversed(held) for m in batch]
    ramp = (len(held) - 1) * len(batches[0]) + 2 * (workers - 1 - worker)
    return _alternating(forwards, backwards, ramp)


def _alternating(forwards: Sequence[Task], backwards: Sequence[Task], ramp: int) -> tuple[Task, ...]:
    """``ramp`` forward tasks (all, if there are not so many), then one of each by turns, then the other backwards."""
    ramp = min(ramp, len(forwards))
    turns = [task for pair in zip(forwards[ramp:], backwards, strict=False) for task in pair]
    return (*forwards[:ramp], *turns, *backwards[len(backwards) - ramp :])


def _with_weights(tasks: Sequence[Task], microbatches: int) -> Iterator[Task]:
    stage = tasks[0].stage
    for task in tasks:
        yield task
        if task.kind == Kind.BACKWARD and task.microbatch >= stage:
            yield Task(Kind.WEIGHT, stage, task.microbatch - stage)
    for m in range(max(0, microbatches - stage), microbatches):
        yield Task(Kind.WEIGHT, stage, m)
