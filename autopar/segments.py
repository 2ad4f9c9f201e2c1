"""Which ops of a planned stage run in which of its programs, and what passes between them.

A stage is planned as one step: a loop over micro-batches, with its sums (:mod:`autopar.lower.emit`). Its body becomes
``forward``, ``backward`` and ``weight``; what the loop waits for, ``prepare``; what waits for the loop, ``update.0``,
``update.1``, ... A value that a later program reads passes through a buffer, in the layout in which it was made; a
value of a micro-batch also in the converted form that the plan makes once for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import InternalError
from autopar.ir import Op, Step, region_ports
from autopar.partition import StageSection
from autopar.plan import PlanFacts
from autopar.sharding.layout import Layout, local_size, text
from autopar.sharding.strategy import named

Form = tuple[int, Layout]  # a value in a layout

PREPARE, FORWARD, BACKWARD, WEIGHT, UPDATE = 0, 1, 2, 3, 4
_LOOP = (FORWARD, BACKWARD, WEIGHT)
_NAMES = {PREPARE: "prepare", FORWARD: "forward", BACKWARD: "backward", WEIGHT: "weight"}


def program_name(segment: int) -> str:
    """The name of the program that a segment becomes."""
    return _NAMES.get(segment, f"update.{segment - UPDATE}")


@dataclass
class Segment:
    """One program.

    Attributes:
      ops: in execution order.
      inputs: buffer name -> the forms that it holds.
      outputs: buffer name -> (the form it shall hold, whether it is read as late readers do).
      counts: whether it needs the number of the micro-batch.
      constants: ids of the captured arrays that it reads, as the plan lays them out.
    """

    ops: list[Op] = field(default_factory=list)
    inputs: dict[str, tuple[Form, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[Form, bool]] = field(default_factory=dict)
    counts: bool = False
    constants: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Segments:
    """A stage taken apart.

    Attributes:
      programs: segment number -> program, those with nothing to do left out.
      buffers: name -> (the form it holds, its scope).
      index: value id of the number of the micro-batch, None if nothing reads it.
      again: segment number -> ids of the ops of the forward pass that it runs again.
      converts: segment number -> what it converts: forms, and whether for late readers alone.
    """

    programs: dict[int, Segment]
    buffers: dict[str, tuple[Form, str]]
    index: int | None
    again: Mapping[int, frozenset[int]] = field(default_factory=dict)
    converts: Mapping[int, frozenset[tuple[Form, bool]]] = field(default_factory=dict)


def take_apart(
    step: Step,
    plan: PlanFacts,
    info: StageSection,
    *,
    split_backward: bool,
    again: frozenset[int] = frozenset(),
) -> Segments:
    """Take a planned stage apart.

    Args:
      step: the stage's section as a step of its own (:func:`autopar.lower.emit.emit` writes it).
      plan: a plan for it.
      info: what the stage does.
      split_backward: whether gradients of the stage's own parameters get a program of their own.
      again: rematerialise: ids of the user's ops of the forward pass whose results are not kept for the backward pass;
        it computes again those that it needs. -1 stands for ops that are none of the user's.
    """
    cutter = _Cutter(step, plan, info, split_backward)
    cutter.assign()
    if again:
        cutter.rematerialise(again)
    cutter.enter()
    cutter.leave()
    cutter.connect()
    # Counting begins in the first program, whatever else there is to prepare.
    counts = {PREPARE} if any(s.counts for s in cutter.segments.values()) else set()
    programs = {k: s for k, s in sorted(cutter.segments.items()) if s.outputs or k in counts}
    copied = {k: frozenset(ops) for k, ops in cutter.copied.items()}
    converts = {k: cutter.conversions(k) for k in programs}
    return Segments(programs, cutter.buffers, cutter.index, copied, converts)


class _Cutter:
    def __init__(self, step: Step, plan: PlanFacts, info: StageSection, split_backward: bool) -> None:
        self.graph = step.graph
        self.values = self.graph.values
        self.plan = plan
        self.info = info
        self.split_backward = split_backward
        loops = [op for op in self.graph.ops if op.loop is not None and not op.where.mark]
        if len(loops) != 1:
            raise InternalError(f"stage {info.index} has {len(loops)} loops over micro-batches")
        self.loop = loops[0]
        assert self.loop.loop is not None
        self.counts = self.loop.loop
        (self.body,) = self.loop.regions
        self.late_ports = self.loop.where.phase != "forward"
        self.came_from = {
            (v, late): {move.apply(src): src for src, move in arcs}
            for late, moves in ((False, plan.moves), (True, plan.remade))
            for v, arcs in moves.items()
        }
        self.segments: dict[int, Segment] = {}
        self.segment_of: dict[int, int] = {}  # value -> the segment that makes it
        self.made = dict(plan.layouts)
        self.buffers: dict[str, tuple[Form, str]] = {}
        self.held: dict[Form, str] = {}  # what comes into the programs from outside -> its buffer
        self.index: int | None = None
        self.early: dict[int, set[Form]] = {}  # segment -> the forms that it has
        self.again: dict[int, set[int]] = {}  # segment -> values of the forward pass that it computes again
        self.copied: dict[int, set[int]] = {}  # segment -> ids of the ops that it runs again

    # ops

    def assign(self) -> None:
        """Give every op its segment."""
        sums = self.counts.consts + len(self.info.section.summed)
        begun = (*self.loop.operands[:sums], *self.loop.operands[self.counts.consts + self.counts.carry :])
        early = self._leading_to(begun)
        late = self._leading_to(self.graph.outputs) - early - {self.loop.id}
        rounds = self._rounds([op for op in self.graph.ops if op.id in late])
        for op in self.graph.ops:
            if op.id in early:
                self._put(op, PREPARE)
            elif op.id in late:
                self._put(op, rounds[op.id])
        for op in self.body.ops:
            mark = self._mark(op)
            if mark not in self.info.backward:
                self._put(op, FORWARD)
            else:
                self._put(op, WEIGHT if self.split_backward and mark in self.info.weight else BACKWARD)

    def _leading_to(self, values: Iterable[int]) -> set[int]:
        """The ops outside the loop that values are computed with, those that only the loop reads left out."""
        needed = set(values)
        found: set[int] = set()
        for op in reversed(self.graph.ops):
            if not needed.isdisjoint(op.results):
                found.add(op.id)
                needed.update(() if op is self.loop else op.operands)
        return found

    def rematerialise(self, again: frozenset[int]) -> None:
        """Copy the ops of the forward pass that the backward pass reads from, back to what is kept."""
        forward = [op for op in self.segments.get(FORWARD, Segment()).ops if self._mark(op) in again]
        for k in (BACKWARD, WEIGHT):
            if k not in self.segments:
                continue
            known = set().union(*(self.again.get(j, set()) for j in (BACKWARD, WEIGHT) if j < k))
            wanted = {v for op in self.segments[k].ops for v in op.operands}
            copied = []
            for op in reversed(forward):
                if any(v in wanted and v not in known for v in op.results):
                    copied.append(op)
                    wanted.update(op.operands)
            self.again[k] = {v for op in copied for v in op.results}
            self.copied[k] = {op.id for op in copied}
            self.segments[k].ops[:0] = reversed(copied)

    def _maker(self, v: int, k: int) -> int | None:
        """The segment from which program ``k`` has a value: its own, if it computes it again."""
        for j in (k, BACKWARD):
            if j <= k and v in self.again.get(j, ()):
                return j
        return self.segment_of.get(v)

    def _rounds(self, ops: Sequence[Op]) -> dict[int, int]:
        """Op -> its update program: as late as its readers allow, so that new state is made where the old is given up.

        What other stages or the caller wait for is made in the first round that can.
        """
        made: dict[int, int] = {}
        rounds: dict[int, int] = {}
        for op in ops:
            first = UPDATE + self.info.rounds.get(self._mark(op), 0)
            rounds[op.id] = max([first, *(made[v] for v in op.operands if v in made)])
            made.update((v, rounds[op.id]) for v in op.results)
        awaited = set(self.graph.outputs[len(self.info.state) : len(self.info.section.wholes_out)])
        readers: dict[int, list[int]] = {}
        for op in reversed(ops):
            later = [k for v in op.results for k in readers.get(v, ())]
            if later and awaited.isdisjoint(op.results):
                rounds[op.id] = min(later)
            for v in op.operands:
                readers.setdefault(v, []).append(rounds[op.id])
        return rounds

    def _mark(self, op: Op) -> int:
        return int(op.where.mark) if op.where.mark else -1

    def _put(self, op: Op, segment: int) -> None:
        segment = max([segment, *(self.segment_of.get(v, segment) for v in op.operands)])
        self.segments.setdefault(segment, Segment()).ops.append(op)
        self.segment_of.update((v, segment) for v in op.results)
        if op.loop is None:
            strategy = named(op.rule, self.plan.mesh_shape, self.plan.ops[op.id])
            if strategy is None:
                raise InternalError(f"{op.primitive} at {op.where.line} has no strategy {self.plan.ops[op.id]}")
            self.made.update(zip(op.results, strategy.results, strict=True))

    # what comes in

    def _buffer(self, name: str, form: Form, scope: str) -> str:
        self.buffers[name] = (form, scope)
        return name

    def enter(self) -> None:
        """Buffers of what comes from outside, and of what the loop reads from before it."""
        section = self.info.section
        for k, v in enumerate(self.graph.inputs[: len(section.whole)]):
            form = (v, self.plan.layouts[v])
            if k < len(self.info.state):
                self.held[form] = self._buffer(f"state{self.info.state[k]}", form, "state")
            else:
                kind = "feed" if section.whole[k] in self.info.feeds else "got"
                self.held[form] = self._buffer(f"{kind}{section.whole[k]}", form, "step")
        prepare = self.segments.setdefault(PREPARE, Segment())
        parts = dict(zip(self.graph.inputs[len(section.whole) :], section.parts, strict=True))
        consts = self.counts.consts
        for k, v in enumerate(self.loop.operands[: consts + len(section.summed)]):
            inner = self.body.inputs[k]
            form = (v, self.plan.layouts[inner])
            if v in parts:
                inside = (inner, form[1])
                self.held[inside] = self._buffer(f"part{parts[v]}", inside, "microbatch")
            elif k >= consts:
                name = self._buffer(f"sum{k - consts}", (inner, form[1]), "step")
                self.held[inner, form[1]] = name
                prepare.outputs[name] = (form, self.late_ports)
            elif form in self.held:
                self.held[inner, form[1]] = self.held[form]
            else:
                name = self._buffer(f"const{v}:{text(form[1])}", form, "step")
                self.held[inner, form[1]] = self.held[form] = name
                prepare.outputs[name] = (form, self.late_ports)
        self.index = next(iter(self.body.inputs[consts + self.counts.carry :]), None)

    # what goes out

    def leave(self) -> None:
        """Sums go on; parts wait for the updates or leave; results and the state's successors leave."""
        consts, carry = self.counts.consts, self.counts.carry
        section = self.info.section
        sums = len(section.summed)
        for k, v in enumerate(self.body.outputs[:sums]):
            inner = self.body.inputs[consts + k]
            layout = self.plan.layouts[inner]
            if v != inner:
                self._out(f"sum{k}", (v, layout), self.late_ports, BACKWARD)
            self.held[self.loop.results[k], layout] = f"sum{k}"
        names = [*(f"sent{v}" for v in section.parts_out), *(f"join{v}" for v in section.stacked)]
        for k, name in enumerate(names, sums):
            v, result = self.body.outputs[k], self.loop.results[k]
            layout = self.plan.layouts[result]
            form = (v, layout if k < carry else tuple(p - 1 if p > 0 else p for p in layout))
            if v in self.segment_of:
                self._buffer(name, form, "microbatch")
                self._out(name, form, self.late_ports, FORWARD)
            elif form in self.held:
                name = self.held[form]
            else:
                raise InternalError(f"{name} of stage {self.info.index} comes in otherwise than it leaves")
            self.held[result, self.plan.layouts[result]] = name
        arrives = {
            self.graph.inputs[k]: UPDATE + self.info.arrivals.get(v, 0) for k, v in enumerate(section.whole)
        }  # fmt: skip
        readers: dict[int, int] = {}  # input -> the last segment that reads it
        for k, segment in self.segments.items():
            for op in segment.ops:
                readers.update((v, max(k, readers.get(v, 0))) for v in op.operands)
        for k, v in enumerate(self.graph.outputs[: len(section.wholes_out)]):
            form = (v, self.plan.results[k].layout)
            least = arrives.get(v, UPDATE)
            if k >= len(self.info.state):
                self._out(self._buffer(f"out{k}", form, "step"), form, True, least)
            elif v != self.graph.inputs[k]:
                self._out(f"state{self.info.state[k]}", form, True, max(least, readers.get(self.graph.inputs[k], 0)))

    def _out(self, name: str, form: Form, late: bool, least: int) -> None:
        segment = max(least, self.segment_of.get(form[0], least)) if least >= UPDATE else self.segment_of[form[0]]
        self.segments.setdefault(segment, Segment()).outputs[name] = (form, late)

    # what passes between programs

    def connect(self) -> None:
        """Give every program the forms that it reads and does not make.

        What runs again converts again: a converted copy that is only for it would be held for every micro-batch.
        """
        reads = {k: self._reads(segment.ops) for k, segment in self.segments.items()}
        for k, found in reads.items():
            forms = (*found, *self.segments[k].outputs.values())
            self.early[k] = {x for form, late in forms if not self._remade(form, late) for x in self._way_to(form)}
        for k in sorted(self.segments):
            segment = self.segments[k]
            copied = self.copied.get(k, set())
            first = self._reads(op for op in segment.ops if op.id not in copied)
            for form, late in (*sorted(first), *segment.outputs.values()):
                self._bring(k, form, late)
            shared = {form for form, late in first if not self._remade(form, late)}
            for form, late in sorted(reads[k] - first):
                self._bring(k, form, late, anew=form not in shared)

    def _reads(self, ops: Iterable[Op]) -> set[tuple[Form, bool]]:
        """The forms that ops read, those inside their regions included, and whether late."""
        found: set[tuple[Form, bool]] = set()
        for op in ops:
            late = op.where.phase != "forward"
            if op.loop is None:
                strategy = named(op.rule, self.plan.mesh_shape, self.plan.ops[op.id])
                assert strategy is not None
                found.update(((v, x), late) for v, x in zip(op.operands, strategy.operands, strict=True))
                continue
            for port in region_ports(op):
                layout: Layout = (-1,) * len(self.plan.mesh_shape)
                if port.makes:
                    inner, shift = port.makes[0]
                    layout = tuple(p - shift if p >= 0 else p for p in self.plan.layouts[inner])
                for v, stacked in port.reads:
                    found.add(((v, tuple(p + stacked if p >= 0 else p for p in layout)), late))
            for region in op.regions:
                found |= self._reads(region.ops)
        return found

    def _way_to(self, form: Form) -> list[Form]:
        """A form, and those that a program goes through to make it from the value as made."""
        v, layout = form
        steps = self.came_from.get((v, False), {})
        found = [form]
        while layout != self.made.get(v) and layout in steps:
            layout = steps[layout]
            found.append((v, layout))
        return found

    def _remade(self, form: Form, late: bool) -> bool:
        return late and form[1] in self.came_from.get((form[0], True), {})

    def _bring(self, k: int, form: Form, late: bool, *, anew: bool = False) -> None:
        """See to it that program ``k`` can make or read ``form``: what an evaluator does, before it runs.

        With ``anew`` it converts what an earlier program has converted, too, if that is larger than the value as made.
        """
        v, layout = form
        if self.values[v].literal:
            return
        if v == self.index:
            self.segments[k].counts = True
            return
        if self._remade(form, late):
            self._bring(k, (v, self.came_from[v, True][layout]), late, anew=anew)
            return
        source = self.came_from.get((v, False), {}).get(layout)
        maker = self._maker(v, k)
        held = self.held.get(form)
        if held is not None and not (k == PREPARE and held in self.segments[k].outputs):
            self._take(k, held, form)
        elif maker is None and v not in self.made:
            return  # made and read inside a loop of the user
        elif maker == k:
            if layout != self.made[v] and source is not None:
                self._bring(k, (v, source), False, anew=anew)
        elif not (anew and self._larger(form)) and (earlier := self._converted_earlier(k, maker, form)) is not None:
            self._hand_over(earlier, k, form)
        elif source is not None and layout != self.made.get(v):
            self._bring(k, (v, source), False, anew=anew)
        elif maker is not None:
            self._hand_over(maker, k, form)
        elif v in self.graph.constants:
            self.segments[k].constants.add(v)
        elif v in self._outside:
            raise InternalError(
                f"stage {self.info.index} never gets {self.values[v].name or f'value {v}'} as {text(layout)}"
            )

    def conversions(self, k: int) -> frozenset[tuple[Form, bool]]:
        """What program ``k`` converts, as an evaluator does that follows the plan's moves back to what is there."""
        segment = self.segments[k]
        here = {v for op in segment.ops for v in op.results}
        have = {(v, self.made[v]) for v in here if v in self.made}
        have.update(form for forms in segment.inputs.values() for form in forms)
        have.update((v, self.made[v]) for v in segment.constants)
        found: set[tuple[Form, bool]] = set()
        for form, late in {*self._reads(segment.ops), *segment.outputs.values()}:
            (v, layout), remade = form, self._remade(form, late)
            while (v, layout) not in have or remade:
                source = self.came_from.get((v, remade), {}).get(layout)
                if source is None or self.values[v].literal:
                    break
                found.add(((v, layout), remade))
                layout = source
                remade = remade and self._remade((v, layout), late)
        return frozenset(found)

    def _larger(self, form: Form) -> bool:
        """Whether a device holds more of a value in this form than in that in which it was made."""
        v, layout = form
        made = self.made.get(v, layout)
        shape, mesh = self.values[v].shape, self.plan.mesh_shape
        return local_size(shape, layout, mesh) > local_size(shape, made, mesh)

    @property
    def _outside(self) -> set[int]:
        return {*self.graph.inputs, *self.body.inputs, *self.loop.results}

    def _converted_earlier(self, k: int, maker: int | None, form: Form) -> int | None:
        """An earlier program that has a value of the same scope in this form already.

        What comes from outside and is converted in the loop is converted anew in each of its programs: a copy that is
        handed on would be held for every micro-batch in flight.
        """
        if maker is None and k <= UPDATE:
            return None
        first = UPDATE if maker is None else maker
        scope = [j for j in self.segments if first <= j < k and (j in _LOOP) == (first in _LOOP)]
        return next((j for j in sorted(scope) if form in self.early[j]), None)

    def _take(self, k: int, name: str, form: Form) -> None:
        inputs = self.segments[k].inputs
        inputs[name] = tuple(dict.fromkeys((*inputs.get(name, ()), form)))

    def _updated(self, name: str) -> bool:
        """Whether a buffer is written more than once."""
        return self.buffers[name][1] == "state" or sum(name in s.outputs for s in self.segments.values()) > 1

    def _hand_over(self, maker: int, k: int, form: Form) -> None:
        outputs = self.segments[maker].outputs
        left = (
            name
            for name, (found, _) in outputs.items()
            if found == form and not self._updated(name)  # a sum that begins as these zeros will not stay so
        )
        name = next(left, f"v{form[0]}:{text(form[1])}")
        if name not in outputs:
            self._buffer(name, form, "microbatch" if maker in _LOOP else "step")
            outputs[name] = (form, False)
        self._take(k, name, form)
