"""Units that compute again take turns: what one makes again is not there before the backward pass comes to it.

What runs again depends on what was kept alone, so a compiler may run it at any time before it is read, that of all
units at once. Each op is written right before the first that needs it, and a barrier makes what a run of them reads
depend on the gradient that the backward pass has got to. XLA's GPU and TPU compilers heed it when they order a program;
its CPU compiler drops barriers before, so that memory there is what its own order makes of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.ir import Op
from autopar.plan import PlanFacts
from autopar.segments import Form, Segment, Segments
from autopar.sharding.strategy import named


@dataclass(frozen=True)
class Turn:
    """Ops to run one after the other.

    Attributes:
      after: what they wait for: a value of the backward pass, as made; None if they need not wait.
      kept: what they read of the forward pass: that is what waits.
      ops: in execution order.
    """

    after: Form | None
    kept: tuple[Form, ...]
    ops: tuple[Op, ...]


def turns(segments: Segments, k: int, plan: PlanFacts) -> Iterator[Turn]:
    """The ops of a program in turns.

    Args:
      segments: the stage taken apart.
      k: which of its programs.
      plan: the stage's plan.
    """
    segment, again = segments.programs[k], segments.again.get(k, frozenset())
    ops = _just_in_time(segment.ops, again)
    kept = [form for name, forms in _microbatch_inputs(segments, segment) for form in forms]
    made: dict[int, Form] = {}
    position = 0
    for runs_again, run in itertools.groupby(ops, key=lambda op: op.id in again):
        part = tuple(run)
        wanted = {v for op in part for v in op.operands} if runs_again else set()
        waits = tuple(form for form in kept if form[0] in wanted)
        after = next((made[v] for op in ops[position:] for v in op.operands if v in made), None) if waits else None
        yield Turn(after, waits, part)
        position += len(part)
        if not runs_again:
            made.update((v, form) for op in part for v, form in _made(op, plan))


def _microbatch_inputs(segments: Segments, segment: Segment) -> Iterator[tuple[str, tuple[Form, ...]]]:
    return ((name, forms) for name, forms in segment.inputs.items() if segments.buffers[name][1] == "microbatch")


def _just_in_time(ops: Sequence[Op], again: frozenset[int]) -> list[Op]:
    """Ops, each of those that run again right before the first other that needs it."""
    own = [op for op in ops if op.id not in again]
    needed: dict[int, int] = {}  # value -> position of the first op that needs it
    for at, op in reversed(list(enumerate(own))):
        needed.update(dict.fromkeys(op.operands, at))
    before: dict[int, list[Op]] = {}
    for op in reversed([op for op in ops if op.id in again]):
        at = min((needed[v] for v in op.results if v in needed), default=0)
        before.setdefault(at, []).append(op)
        needed.update((v, min(at, needed.get(v, at))) for v in op.operands)
    return [o for at, op in enumerate(own) for o in (*reversed(before.get(at, [])), op)]


def _made(op: Op, plan: PlanFacts) -> Iterator[tuple[int, Form]]:
    """What an op makes, as it makes it."""
    if op.loop is not None:
        return ((v, (v, plan.layouts[v])) for v in op.results)
    strategy = named(op.rule, plan.mesh_shape, plan.ops[op.id])
    assert strategy is not None
    return ((v, (v, layout)) for v, layout in zip(op.results, strategy.results, strict=True))


__all__ = ["Turn", "turns"]
