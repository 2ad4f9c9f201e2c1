"""Cutting stacked layers into chunks as sharding over depth.

A scan over ``L`` stacked layers becomes a chain of ``chunks`` scans over ``L / chunks`` layers each, and every array
that holds something per layer becomes ``chunks`` arrays. That is a mesh with one axis of size ``chunks``, walked layer
after layer. One placement per value follows by the ops' own rules (:mod:`autopar.sharding.strategy`):

- ``d >= 0``: every chunk has its part along dim ``d``;
- ``SAME``: one array for all chunks.

A scan that reads a sequence in parts is a *chain*: what it carries is handed from chunk to chunk, its constants are
the same for all, and what it stacks up comes out in parts. So the backward scan follows from the forward one through
what it kept, and the optimizer from both: a leaf of the state whose successor comes in parts is kept in parts.

Sums over depth (norms) are added up at once, so none are placed here. What an op wants whole is joined; only a stack
must never be, for then one place would hold all layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import PlanError
from autopar.ir import Kind, Op, Step, region_ports
from autopar.partition.apart import PICK, outer_reads, shift, stays_apart
from autopar.partition.stacks import check_chunks, find_stacks
from autopar.partition.timing import SAME
from autopar.sharding.layout import SUM
from autopar.sharding.strategy import Action, actions, named

_KEEPS_VALUES = frozenset({"convert_element_type", "copy", "optimization_barrier", "reshape", "transpose"})


@dataclass(frozen=True)
class Part:
    """What one array of the rewritten step is of an array of the step.

    Attributes:
      index: flat index of that array, among the inputs or the outputs.
      start, stop: which part of it, along ``dim``; None if it is all of it.
      dim: the dim that is cut.
    """

    index: int
    start: int | None = None
    stop: int | None = None
    dim: int = 0


@dataclass(frozen=True)
class Depth:
    """How a step lies over depth.

    Attributes:
      chunks: number of parts.
      places: value id -> placement, for values of regions too.
      actions: op id -> action along the depth axis; ops that are not here run whole.
      chains: op ids of the scans that are cut.
      apart: op ids of other regions in which chunks never meet: every chunk can have one of its own.
      inputs, outputs: of the rewritten step, in order.
    """

    chunks: int
    places: Mapping[int, int] = field(repr=False)
    actions: Mapping[int, str] = field(repr=False)
    chains: frozenset[int]
    apart: frozenset[int]
    inputs: tuple[Part, ...] = field(repr=False)
    outputs: tuple[Part, ...] = field(repr=False)


def cut_depth(step: Step, chunks: int) -> Depth:
    """Find out how ``step`` lies over depth, with its stacked layers in ``chunks`` chunks.

    Raises:
      PlanError: a stack cannot be cut into that many (the message says which numbers would do), or is read whole.
    """
    stacks = find_stacks(step)
    check_chunks(step, stacks, chunks)
    cut, whole = dict(stacks.dims), frozenset[int]()
    while True:
        cutter = _Cutter(step, chunks, cut, whole)
        cutter.forward()
        cutter.sink()
        joined = cutter.joined_inputs()
        for v, op in joined.items():
            if v in stacks.dims:
                raise _read_whole(step, v, op)
        whole |= joined.keys()
        found = {v: d for v, d in (cut | cutter.cut_inputs()).items() if v not in whole}
        if found == cut:
            return cutter.depth()
        cut = found


def _read_whole(step: Step, v: int, op: Op | None) -> PlanError:
    name = step.graph.values[v].name or "a stack of layers"
    at = f"{op.primitive} at {op.where.line} reads" if op is not None else "the result holds"
    return PlanError(
        f"{step.name} cannot keep its stacked layers in chunks: {name} is scanned over, but {at} all its layers "
        "together, so every chunk would need the parameters of all others. Do there what can be done layer by layer "
        "(or as a sum over layers), or leave the stack whole: one chunk."
    )


class _Cutter:
    """One pass over the step, with the inputs that are known to be in parts (``cut``) or must not be (``whole``)."""

    def __init__(self, step: Step, chunks: int, cut: Mapping[int, int], whole: Iterable[int]) -> None:
        self.step = step
        self.graph = step.graph
        self.values = step.graph.values
        self.chunks = chunks
        self.cut = cut
        self.never = {*whole, *(step.graph.inputs[i] for i in step.batch)}
        self.places: dict[int, int] = dict.fromkeys(self.values, SAME) | dict(cut)
        self.actions: dict[int, str] = {}
        self.chains: set[int] = set()
        self.wants: dict[int, set[int]] = {}
        self.joins: dict[int, Op | None] = {}  # value in parts -> who wants it otherwise
        self.sources: dict[int, int] = {}  # value -> what it is a copy of

    # forward: a placement for every value

    def forward(self) -> None:
        for op in self.graph.ops:
            self._place(op)

    def _place(self, op: Op) -> None:
        if op.loop is not None:
            self._region(op)
            return
        places = [self.places[v] for v in op.operands]
        self.actions.pop(op.id, None)
        made = [SAME] * len(op.results)
        if any(p >= 0 for p in places):
            if op.primitive in _KEEPS_VALUES:
                self.sources[op.results[0]] = op.operands[0]
            action = self._best(op, places)
            if action is not None:
                self.actions[op.id] = action.name
                made = [max(p, SAME) for p in action.results]
            elif op.primitive == "slice":
                self.actions[op.id] = PICK
        self.places.update(zip(op.results, made, strict=True))

    def _best(self, op: Op, places: Sequence[int]) -> Action | None:
        """The action that joins the fewest operands, stacks before all; None if splitting helps none of them."""

        def joined(action: Action) -> tuple[int, int]:
            moved = [
                v
                for v, p, wanted in zip(op.operands, places, action.operands, strict=True)
                if p >= 0 and wanted != p
            ]  # fmt: skip
            return sum(self._source(v) in self.cut for v in moved), len(moved)

        found = list(self._fitting(op, places))
        best = min(found, key=joined, default=None)
        parts = sum(p >= 0 for p in places)
        return best if best is not None and joined(best)[1] < parts else None

    def _fitting(self, op: Op, places: Sequence[int]) -> Iterator[Action]:
        """The actions that split a factor, and to which all operands can be brought."""
        for action in actions(op.rule):
            if action.factor is None or op.rule.factors[action.factor].kind is Kind.HALO:
                continue
            wanted = zip(op.operands, places, action.operands, strict=True)
            possible = all(p == SAME or want != SUM for _, p, want in wanted)
            if possible and named(op.rule, (self.chunks,), (action.name,)) is not None:
                yield action

    def _region(self, op: Op) -> None:
        loop = op.loop
        assert loop is not None
        if loop.kind == "scan" and any(self.places[v] == 0 for v in op.operands[loop.consts + loop.carry :]):
            self._chain(op, loop.carry)
            return
        self.chains.discard(op.id)
        ports = region_ports(op)
        held = [SAME] * len(ports)
        mixed: set[int] = set()  # ports of parts along different dims: joined
        while True:
            before = list(held)
            for k, port in enumerate(ports):
                self.places.update((v, shift(held[k], stacked)) for v, stacked in port.makes)
            for region in op.regions:
                for inner in region.ops:
                    self._place(inner)
            for k, port in enumerate(ports):
                found = {shift(self.places[v], -stacked) for v, stacked in port.reads} - {SAME}
                if len(found) > 1 or not port.makes:
                    mixed.add(k)
                held[k] = SAME if k in mixed or not found else found.pop()
            if held == before:
                return

    def _chain(self, op: Op, carry: int) -> None:
        self.chains.add(op.id)
        for region in op.regions:
            for v in (*region.inputs, *(v for inner in region.walk() for v in inner.results)):
                self.places[v] = SAME
            for inner in region.walk():
                self.actions.pop(inner.id, None)
                self.chains.discard(inner.id)
        self.places.update((v, SAME if k < carry else 0) for k, v in enumerate(op.results))

    def _source(self, v: int) -> int:
        while v in self.sources:
            v = self.sources[v]
        return v

    # backward: what is only read in parts is made in parts

    def sink(self) -> None:
        """Give ops that are the same for all chunks an action, where all their readers want parts."""
        for v, place in self._leaving():
            self._want(None, [v], [place])
        for op in reversed(self.graph.ops):
            if op.loop is not None:
                for v, place in self._outer_reads(op):
                    self._want(op, [v], [place])
            elif self.actions.get(op.id) == PICK:
                self._want(op, op.operands, [self.places[op.operands[0]]])
            elif op.id in self.actions:
                self._want(op, op.operands, self._action(op).operands)
            else:
                self._sink(op)

    def _sink(self, op: Op) -> None:
        wants = [self.wants.get(v, {SAME}) for v in op.results]
        results = tuple(max(w) if len(w) == 1 else SAME for w in wants)
        same = [SAME] * len(op.operands)
        action = None
        if min(results, default=SAME) >= 0 and all(self.places[v] == SAME for v in op.operands):
            action = next((a for a in self._fitting(op, same) if a.results == results), None)
        if action is not None:
            self.actions[op.id] = action.name
            self.places.update(zip(op.results, results, strict=True))
        self._want(op, op.operands, same if action is None else action.operands)

    def _outer_reads(self, op: Op) -> list[tuple[int, int]]:
        loop = op.loop
        assert loop is not None
        whole = loop.consts + loop.carry
        if op.id in self.chains:
            return [(v, SAME if k < whole else 0) for k, v in enumerate(op.operands)]
        return outer_reads(op, self.places)

    def _want(self, op: Op | None, ids: Iterable[int], places: Iterable[int]) -> None:
        for v, place in zip(ids, places, strict=True):
            if self.values[v].literal:
                continue
            self.wants.setdefault(v, set()).add(max(place, SAME))
            if self.places[v] >= 0 and self.places[v] != place:
                self.joins.setdefault(v, op)

    def _action(self, op: Op) -> Action:
        return next(a for a in actions(op.rule) if a.name == self.actions[op.id])

    # what comes and goes

    def _leaving(self) -> list[tuple[int, int]]:
        """Per output: its value, and how it leaves. A leaf leaves as it comes, everything else as it is made."""
        found = [(v, self.places[v]) for v in self.graph.outputs]
        for i, o in self.step.state:
            found[o] = (self.graph.outputs[o], self.places[self.graph.inputs[i]])
        return found

    def cut_inputs(self) -> dict[int, int]:
        """Inputs that may be in parts: all their readers want them so, or their successors come so."""
        inputs = [v for v in self.graph.inputs if v not in self.never and self.places[v] == SAME]
        found = {v: max(self.wants[v]) for v in inputs if len(self.wants.get(v, ())) == 1}
        found = {v: d for v, d in found.items() if d >= 0}
        for i, o in self.step.state:
            v, place = self.graph.inputs[i], self.places[self.graph.outputs[o]]
            if place >= 0 and v in inputs:
                found[v] = place
        return found

    def joined_inputs(self) -> dict[int, Op | None]:
        """Inputs in parts that, as they are or copied, some op wants otherwise."""
        found = {self._source(v): op for v, op in self.joins.items()}
        return {v: op for v, op in found.items() if v in self.cut}

    def depth(self) -> Depth:
        inputs = [part for i, v in enumerate(self.graph.inputs) for part in self._parts(i, v, self.places[v])]
        outputs = [part for o, (v, place) in enumerate(self._leaving()) for part in self._parts(o, v, place)]
        regions = [op for op in self.graph.ops if op.loop is not None and op.id not in self.chains]
        apart = frozenset(op.id for op in regions if stays_apart(op, self.places, self.actions, self.chains))
        chains = frozenset(self.chains)
        return Depth(self.chunks, self.places, self.actions, chains, apart, tuple(inputs), tuple(outputs))

    def _parts(self, index: int, v: int, place: int) -> list[Part]:
        if place < 0:
            return [Part(index)]
        size = self.values[v].shape[place] // self.chunks
        return [Part(index, k * size, (k + 1) * size, place) for k in range(self.chunks)]
