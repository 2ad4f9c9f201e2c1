"""A step cut into stages: a section of it for each, and what they hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.errors import PlanError
from autopar.ir import Step
from autopar.partition.loop_stages import LoopStages, forward_ops, stage_loop
from autopar.partition.once_stages import OnceStages, stage_once
from autopar.partition.section import Section
from autopar.partition.timing import Timing


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that one stage hands to another.

    Attributes:
      value: its id.
      source, target: stages.
      part: once per micro-batch (a part), or once per step (whole).
    """

    value: int
    source: int
    target: int
    part: bool


@dataclass(frozen=True)
class StageSection:
    """What one stage does.

    Attributes:
      index: its number.
      section: its ops, and the values that come and go.
      backward: ids of its ops of the backward pass.
      weight: those of them that no other stage waits for: they compute only this stage's gradients.
      rounds: id of an op after the loop -> its round of updates.
      arrivals: id of a value sent whole by another stage -> the round of updates that can read it.
      state: input indices of the leaves that it keeps.
      feeds: input value ids that the caller hands to it whole.
      fed: how many of ``section.parts``, the first, are parts of the batch; the others come from other stages.

    ``section.whole`` holds the state, then the feeds, then what other stages send; ``section.wholes_out`` the
    successors of the state, then the results for the caller, then what is sent.
    """

    index: int
    section: Section
    backward: frozenset[int] = field(repr=False)
    weight: frozenset[int] = field(repr=False)
    rounds: dict[int, int] = field(repr=False)
    arrivals: dict[int, int] = field(repr=False)
    state: tuple[int, ...]
    feeds: tuple[int, ...]
    fed: int


@dataclass(frozen=True)
class Staging:
    """A step cut into stages.

    Attributes:
      stages: in order.
      crossings: what they hand to each other.
      results: output index -> the stage that hands it to the caller, for results that are no state.
    """

    stages: tuple[StageSection, ...]
    crossings: tuple[Crossing, ...]
    results: dict[int, int]


def stage_step(step: Step, timing: Timing, cut: Sequence[int]) -> Staging:
    """Cut a timed step into stages.

    Args:
      step: the step.
      timing: when its ops run.
      cut: per stage, where in :func:`forward_ops` it begins; the first is 0.

    Raises:
      PlanError: the cut is not one of this step.
    """
    forward = forward_ops(step, timing)
    if not cut or cut[0] != 0 or list(cut) != sorted(set(cut)) or cut[-1] >= max(len(forward), 1):
        raise PlanError(
            f"stages must begin at increasing positions from 0 to below {len(forward)}, the number of forward ops of "
            f"{step.name}; found {list(cut)}."
        )
    loop = stage_loop(step, timing, cut)
    once = stage_once(step, timing, loop)
    crossings = (*_loop_crossings(timing, loop), *(Crossing(v, s, t, False) for v, s, t in once.sends))
    stages = tuple(_section(step, timing, loop, once, crossings, s) for s in range(loop.stages))
    return Staging(stages, tuple(crossings), dict(once.results))


def _loop_crossings(timing: Timing, loop: LoopStages) -> list[Crossing]:
    maker = {v: op for op in timing.loop for v in op.results}
    found: dict[tuple[int, int], Crossing] = {}
    for op in timing.loop:
        for stage in loop.of[op.id]:
            for v in op.operands:
                if v in maker and stage not in loop.of[maker[v].id]:
                    source = min(loop.of[maker[v].id], key=lambda s: abs(s - stage))
                    found[v, stage] = Crossing(v, source, stage, True)
    return [found[key] for key in sorted(found)]


def _section(
    step: Step, timing: Timing, loop: LoopStages, once: OnceStages, crossings: Sequence[Crossing], stage: int
) -> StageSection:
    graph = step.graph
    ops = tuple(op for op in timing.loop if stage in loop.of[op.id])
    late = {i for i, stages in once.update.items() if stage in stages}
    after = tuple(op for op in graph.ops if op.id in late)
    state = tuple(i for i, stages in sorted(once.state.items()) if stage in stages)
    feeds = tuple(v for v, stages in sorted(once.feeds.items()) if stage in stages)
    received = [c for c in crossings if c.target == stage]
    sent = [c for c in crossings if c.source == stage]
    reads = {v for op in ops for v in op.operands}
    batch = [graph.inputs[i] for i in timing.batch if graph.inputs[i] in reads]
    outputs = [graph.outputs[o] for i, o in step.state if i in state]
    outputs += [graph.outputs[o] for o, s in sorted(once.results.items()) if s == stage]
    whole_out = [*outputs, *dict.fromkeys(c.value for c in sent if not c.part)]
    made = {v for op in ops for v in op.results}
    taken = {v for op in after for v in op.operands} | set(whole_out)
    parts_out = tuple(dict.fromkeys(c.value for c in sent if c.part))
    section = Section(
        tuple(op for op in timing.before if stage in once.prepare.get(op.id, ())),
        ops,
        after,
        whole=(*(graph.inputs[i] for i in state), *feeds, *(c.value for c in received if not c.part)),
        parts=(*batch, *(c.value for c in received if c.part)),
        cut=False,
        summed=tuple(v for v in timing.summed if v in made and v in taken),
        stacked=tuple(v for v in timing.stacked if v in made and v in taken),
        wholes_out=tuple(whole_out),
        parts_out=parts_out,
    )
    backward = frozenset(op.id for op in ops if op.id in loop.backward)
    return StageSection(
        stage,
        section,
        backward,
        _weights(section, backward),
        {i: when for (i, s), when in once.rounds.items() if s == stage},
        {v: when for (v, s), when in once.arrivals.items() if s == stage},
        state,
        feeds,
        len(batch),
    )


def _weights(section: Section, backward: frozenset[int]) -> frozenset[int]:
    """Backward ops that nothing leads on from to another stage."""
    wanted = set(section.parts_out)
    found: set[int] = set()
    for op in reversed(section.loop):
        if op.id not in backward or not wanted.isdisjoint(op.results):
            wanted.update(op.operands)
        else:
            found.add(op.id)
    return frozenset(found)
