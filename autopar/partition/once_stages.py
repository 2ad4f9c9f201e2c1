"""Which stage computes what runs once per step: preparations, and everything after the last micro-batch.

Preparations of the loop (casts of parameters) run on every stage that reads them. The rest follows the data: an op runs
where all that it reads already is, or at least its biggest operands; the others (a factor for clipping) are sent there.
Where those lie on different stages, small ones (partial norms) are sent to whoever wants the result, which is then
computed there, equally on each; of large ones (gradients of a tied parameter) every holder gets the others'. A leaf of
the state lies on every stage that reads it, and all of them compute its successor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from autopar.ir import Op, Step
from autopar.partition.loop_stages import LoopStages
from autopar.partition.timing import Timing

_SMALL = 1024  # elements: sending this many to every stage costs no more than the latency


@dataclass(frozen=True)
class OnceStages:
    """Where runs what runs once.

    Attributes:
      prepare: op id -> stages that compute it before the loop.
      update: op id -> stages that compute it after the loop.
      state: input index -> stages that keep this leaf.
      feeds: input value id -> stages that read it whole, for inputs that are no state.
      sends: (value id, source stage, target stage), of whole values.
      results: output index -> the stage that hands it to the caller, for results that are no state.
      rounds: (op id, stage) -> which round of updates it runs in.
      arrivals: (value id, stage) -> the round in which a value sent by another stage can be read.
    """

    prepare: Mapping[int, frozenset[int]] = field(repr=False)
    update: Mapping[int, frozenset[int]] = field(repr=False)
    state: Mapping[int, frozenset[int]] = field(repr=False)
    feeds: Mapping[int, frozenset[int]] = field(repr=False)
    sends: tuple[tuple[int, int, int], ...]
    results: Mapping[int, int]
    rounds: Mapping[tuple[int, int], int] = field(repr=False)
    arrivals: Mapping[tuple[int, int], int] = field(repr=False)


def stage_once(step: Step, timing: Timing, loop: LoopStages) -> OnceStages:
    """Give everything outside the loop its stages."""
    assignment = _Assignment(step, timing, loop)
    while assignment.grew():
        pass
    return assignment.found()


class _Assignment:
    def __init__(self, step: Step, timing: Timing, loop: LoopStages) -> None:
        self.step = step
        self.graph = step.graph
        self.values = step.graph.values
        self.timing = timing
        self.last = loop.stages - 1
        self.everywhere = frozenset(range(loop.stages))
        early = {op.id for op in timing.before}
        late = {op.id for op in timing.after}
        self.ops = [op for op in self.graph.ops if op.id in early or op.id in late]
        self.makers = {v: op for op in self.ops for v in op.results}
        self.leaves = {self.graph.inputs[i]: i for i, _ in step.state}
        joined = {*timing.summed, *timing.stacked}
        self.joined = {v: frozenset(loop.of[op.id]) for op in timing.loop for v in op.results if v in joined}
        self.prepare, self.loop_reads = self._preparations(early, loop)
        self.places = self._places()
        self.kept = dict(self._seeds())

    def _preparations(self, early: set[int], loop: LoopStages) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        """Stages of early ops that the loop needs, and of every early value it reads.

        A value that the loop makes too, of each micro-batch, is needed early only by early ops.
        """
        looped = {v for op in self.timing.loop for v in op.results}
        reads: dict[int, set[int]] = {}
        needed: dict[int, set[int]] = {}
        for op in self.timing.loop:
            for v in op.operands:
                reads.setdefault(v, set()).update(loop.of[op.id])
                if v not in looped:
                    needed.setdefault(v, set()).update(loop.of[op.id])
        found: dict[int, set[int]] = {}
        for op in reversed(self.timing.before):
            stages = set().union(*(needed.get(v, set()) for v in op.results))
            if stages and op.id in early:
                found[op.id] = stages
                for v in op.operands:
                    reads.setdefault(v, set()).update(stages)
                    needed.setdefault(v, set()).update(stages)
        return found, reads

    def _places(self) -> dict[int, frozenset[int]]:
        """Per whole value, the stages where it is, or can be computed, without sending anything large."""
        places: dict[int, frozenset[int]] = dict(self.joined)
        for v in self.leaves:
            places[v] = frozenset(self.loop_reads.get(v, ())) or self.everywhere
        for op in self.ops:
            held = [places.get(v, self.everywhere) for v in op.operands if not self.values[v].literal]
            common = self.everywhere.intersection(*held) if held else self.everywhere
            if not common:
                apart = [v for v in op.operands if places.get(v, self.everywhere) != self.everywhere]
                biggest = max(self.values[v].size for v in apart)
                held = [places[v] for v in apart if self.values[v].size == biggest]
                common = self.everywhere.intersection(*held)
            if not common:
                common = self.everywhere if biggest <= _SMALL else frozenset().union(*held)
            for v in op.results:
                places.setdefault(v, common)
        return places

    def _seeds(self) -> Iterator[tuple[int, frozenset[int]]]:
        """Where a leaf must lie at least: with the loop's ops that read it, or where its successor is computed."""
        for i, o in self.step.state:
            computed = self.places.get(self.graph.outputs[o], self.everywhere)
            read = frozenset(self.loop_reads.get(self.graph.inputs[i], ()))
            yield i, read or (frozenset([self.last]) if computed == self.everywhere else computed)

    # demands, to a fixed point: a leaf that one more stage reads needs its successor there

    def grew(self) -> bool:
        """Find who wants what; whether more stages must keep a leaf than were known."""
        wanted: dict[int, set[int]] = {}
        self.results: dict[int, int] = {}
        successors = {o: i for i, o in self.step.state}
        for o, v in enumerate(self.graph.outputs):
            if o in successors:
                wanted.setdefault(v, set()).update(self.kept[successors[o]])
            else:
                stages = self.places.get(v, self.everywhere)
                self.results[o] = max(stages)
                wanted.setdefault(v, set()).add(max(stages))
        self.update: dict[int, frozenset[int]] = {}
        for op in reversed(self.ops):
            asked = frozenset().union(*(wanted.get(v, set()) for v in op.results))
            if not asked:
                continue
            here = asked & self.places[op.results[0]]
            here = here or frozenset([max(self.places[op.results[0]])])
            here = here - self.prepare.get(op.id, set()) if self._prepared(op) else here
            self.update[op.id] = here
            for v in op.operands:
                wanted.setdefault(v, set()).update(here)
        self.wanted = wanted
        before = dict(self.kept)
        for v, i in self.leaves.items():
            self.kept[i] |= frozenset(wanted.get(v, ()))
        return before != self.kept

    def _prepared(self, op: Op) -> bool:
        return op.id in self.prepare

    def at(self, v: int) -> frozenset[int]:
        """Stages that have a whole value without receiving it."""
        if v in self.joined:
            return self.joined[v]
        op = self.makers.get(v)
        if op is None:
            return self.everywhere
        return self.update.get(op.id, frozenset()) | frozenset(self.prepare.get(op.id, ()))

    def found(self) -> OnceStages:
        feeds: dict[int, set[int]] = {}
        inputs = set(self.graph.inputs)
        for v, stages in self.wanted.items():
            if v in inputs and v not in self.leaves:
                feeds.setdefault(v, set()).update(stages)
        for op in self.timing.before:
            for v in op.operands:
                if v in inputs and v not in self.leaves:
                    feeds.setdefault(v, set()).update(self.prepare.get(op.id, ()))
        parts = {self.graph.inputs[i] for i in self.timing.batch}
        for v, stages in self.loop_reads.items():
            if v in inputs and v not in self.leaves and v not in parts:
                feeds.setdefault(v, set()).update(stages)
        sends = [
            (v, min(self.at(v)), target)
            for v, stages in sorted(self.wanted.items())
            if not self.values[v].literal
            for target in sorted(stages - self.at(v))
        ]
        return OnceStages(
            {i: frozenset(s) for i, s in self.prepare.items()},
            {i: s for i, s in self.update.items() if s},
            self.kept,
            {v: frozenset(s) for v, s in feeds.items() if s},
            tuple(sends),
            self.results,
            *self._rounds(sends),
        )

    def _rounds(
        self, sends: Iterable[tuple[int, int, int]]
    ) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
        source = {(v, target): src for v, src, target in sends}
        known: dict[tuple[int, int], int] = {}  # (value, stage) -> the round in which it is there
        rounds: dict[tuple[int, int], int] = {}

        def there(v: int, stage: int) -> int:
            if (v, stage) in source:
                return known.get((v, source[v, stage]), 0) + 1
            return known.get((v, stage), 0)

        # The successor of a leaf takes its place in memory, so it is written when all have read the leaf.
        successors = {self.graph.outputs[o]: self.graph.inputs[i] for i, o in self.step.state}
        readers: dict[int, list[Op]] = {}
        for op in self.ops:
            for v in op.operands:
                readers.setdefault(v, []).append(op)
        for _ in range(2):  # once more, now that the rounds of all readers are known
            for op in self.ops:
                for stage in self.update.get(op.id, ()):
                    when = max((there(v, stage) for v in op.operands), default=0)
                    for v in op.results:
                        leaf = successors.get(v)
                        if leaf is not None:
                            when = max([when, *(rounds.get((r.id, stage), 0) for r in readers.get(leaf, ()))])
                    rounds[op.id, stage] = when
                    known.update(((v, stage), when) for v in op.results)
        return rounds, {(v, stage): there(v, stage) for v, stage in source}
