"""Micro-batching as sharding over time: which ops run once, which for every micro-batch.

A step in ``M`` micro-batches is the step on a mesh with one axis of size ``M``, walked one after the other. The batch
is split over it; from there one placement per value follows by the ops' own rules (:mod:`autopar.sharding.strategy`):

- ``d >= 0``: a micro-batch has its part along dim ``d``;
- ``SAME``: equal for all micro-batches (parameters, keys, constants);
- ``SUM``, ``MAX``, ``MIN``: every micro-batch adds to it; known when the last one is done;
- ``AFTER``: computed from such sums, once, after the last micro-batch;
- ``LOCAL``: whole, but a micro-batch's own. Only where ``per_microbatch`` allows it, and with one micro-batch.

Ops on values that are the same run once *before*; those on parts run in the *loop*; those on finished sums *after*.
A value that is the same but only read in parts (a dropout mask) is made part by part, in the loop.

An op that needs a finished sum and a part alike cannot run: the step *couples* its batch (batch normalisation). If the
sum is of the data alone and cheap (the number of unpadded tokens), it is computed from the whole batch before. Else
it is an error, or, with ``per_microbatch``, the sum is estimated from the micro-batch alone: ``M`` times its part,
which makes means over the batch means over the micro-batch, as in GPipe (Huang et al. 2019, section 2.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import CouplingError, InternalError, PlanError
from autopar.ir import Kind, Op, Step, region_ports
from autopar.partition.sinking import sink
from autopar.sharding.layout import MAX, MIN, REPLICATED, SUM
from autopar.sharding.strategy import REPEAT, Action, actions, named

SAME = REPLICATED
LOCAL = -5
AFTER = -6

_LENGTH = -7  # the trips of a loop themselves would be cut

# Moved data: made again in the loop, where it is part of what reads it, rather than kept as a copy from before.
_MOVED = frozenset({"broadcast_in_dim", "iota", "reshape", "rev", "slice", "squeeze", "transpose"})
HEAVY = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated"})
# What can be estimated from some of the examples; of rows gathered from the whole batch there is no estimate.
_ADDS = HEAVY | {"reduce_sum", "reduce_max", "reduce_min", "reduce_or", "reduce_and"}


@dataclass(frozen=True)
class Timing:
    """When everything in a step happens.

    Attributes:
      microbatches: their number, ``M``.
      batch: input index -> the dim along which it is cut.
      places: value id -> placement over time, for values of regions in the loop too.
      actions: op id -> the action of an op in the loop along the time axis (ops of regions too).
      before, loop, after: ops of the top level in execution order. An op may stand in two of them.
      summed: values of the loop that add up, as later ops or the caller want them (a LOCAL one is averaged).
      stacked: values of the loop whose parts later ops or the caller want put together (of one micro-batch: all).
      local: values estimated from one micro-batch where they are made.
    """

    microbatches: int
    batch: Mapping[int, int]
    places: Mapping[int, int] = field(repr=False)
    actions: Mapping[int, str] = field(repr=False)
    before: tuple[Op, ...] = field(repr=False)
    loop: tuple[Op, ...] = field(repr=False)
    after: tuple[Op, ...] = field(repr=False)
    summed: tuple[int, ...] = field(repr=False)
    stacked: tuple[int, ...] = field(repr=False)
    local: frozenset[int] = field(repr=False)


def is_sum(place: int) -> bool:
    """Whether every micro-batch adds to a value placed so."""
    return place in (SUM, MAX, MIN)


def time_step(step: Step, microbatches: int, *, per_microbatch: bool = False) -> Timing:
    """Find out when everything in ``step`` happens, in ``microbatches`` micro-batches.

    Raises:
      PlanError: the batch cannot be cut into that many; the message says which numbers would do.
      CouplingError: the step couples its batch; the message names the user's lines.
    """
    clock = _Clock(step, microbatches, _cut_inputs(step, microbatches), per_microbatch)
    clock.top()
    return clock.timing()


def examples_of(step: Step) -> int:
    """Examples in the batch: the leading dim that most of its arrays have; 0 if there is no batch."""
    leading = Counter(step.graph.values[step.graph.inputs[i]].shape[0] for i in step.batch)
    return leading.most_common(1)[0][0] if leading else 0


def _cut_inputs(step: Step, microbatches: int) -> dict[int, int]:
    """The inputs that are cut, all along their first dim."""
    graph = step.graph
    leading = {i: graph.values[graph.inputs[i]].shape[0] for i in step.batch}
    if not leading:
        raise PlanError(
            f"{microbatches} micro-batches were asked for, but {step.name} has no argument that holds data: every one "
            "comes back updated, is a scalar, or a random key. Give the batch as an argument of its own."
        )
    examples = examples_of(step)
    if examples % microbatches:
        fitting = [n for n in range(1, examples + 1) if examples % n == 0]
        names = ", ".join(graph.values[graph.inputs[i]].name for i, n in leading.items() if n == examples)
        raise PlanError(
            f"a batch of {examples} ({names}) cannot be cut into {microbatches} equal micro-batches. "
            f"Micro-batch counts that would do: {', '.join(map(str, fitting))}; or make the batch a multiple of "
            f"{microbatches}."
        )
    return {i: 0 for i, n in leading.items() if n == examples}


class _Clock:
    """Places the values of a step one op after the other.

    Where a value turns out to be wanted ``whole`` before the loop, or ``local``, the pass goes back to the op that
    makes it: what is placed before that depends on no later op.
    """

    def __init__(self, step: Step, microbatches: int, batch: Mapping[int, int], per_microbatch: bool) -> None:
        self.step = step
        self.graph = step.graph
        self.values = step.graph.values
        self.mesh = (microbatches,)
        self.batch = batch
        self.whole: set[int] = set()
        self.local: set[int] = set()
        self.per_microbatch = per_microbatch
        self.places: dict[int, int] = dict.fromkeys(self.values, SAME)
        self.actions: dict[int, str] = {}
        self.maker = {v: op for op in step.graph.walk() for v in op.results}
        self.outside = {*step.graph.inputs, *step.graph.constants, *(v for op in step.graph.ops for v in op.results)}
        self.passed = {
            v: [w for w, _ in port.reads]
            for op in step.graph.walk()
            if op.loop is not None
            for port in region_ports(op)
            for v, _ in port.makes
        }
        self.readers = Counter(v for op in step.graph.ops for v in op.operands) + Counter(step.graph.outputs)
        self.anew: set[int] = set()  # values that are to be placed anew

    # forward: a placement for every value

    def top(self) -> None:
        one = self.mesh == (1,)
        for i, dim in self.batch.items():
            self.places[self.graph.inputs[i]] = LOCAL if one else dim
        differentiated = self._feeds_backward()
        ops = self.graph.ops
        at = 0
        while at < len(ops):
            self._top_op(ops[at], ops[at].id in differentiated)
            at = self._gone_back(at) if self.anew else at + 1
        sink(self.graph, self.places, self.actions, self._makes, (SAME, LOCAL))

    def _gone_back(self, at: int) -> int:
        """Forget what was placed from the first op on that makes a value to be placed anew; its position."""
        while at >= 0 and self.anew:
            op = self.graph.ops[at]
            for inner in _with_inner(op):
                self.actions.pop(inner.id, None)
                self._set((*inner.results, *(v for region in inner.regions for v in region.inputs)), SAME)
                self.anew.difference_update(inner.results)
            at -= 1
        self.anew.clear()  # the step's own inputs are placed already
        return at + 1

    def _feeds_backward(self) -> set[int]:
        """Ops that a backward op depends on, and backward ops: what must run in the loop."""
        wanted: set[int] = set()
        found: set[int] = set()
        for op in reversed(self.graph.ops):
            if op.where.phase == "backward" or not wanted.isdisjoint(op.results):
                found.add(op.id)
                wanted.update(op.operands)
        return found

    def _top_op(self, op: Op, differentiated: bool) -> None:
        places = [self.places[v] for v in op.operands]
        if not self.whole.isdisjoint(op.results) or all(p == SAME for p in places):
            return  # SAME: runs before
        late = [v for v, p in zip(op.operands, places, strict=True) if p == AFTER or is_sum(p)]
        if not late and LOCAL in places and op.where.phase == "update":
            late = [v for v, p in zip(op.operands, places, strict=True) if p == LOCAL]
        if late:
            parts = any(p >= 0 for p in places)
            if self._adds_up_later(op):
                self._in_loop(op, places)
            elif LOCAL in places and op.where.phase != "update":
                # Each micro-batch's sum goes with its own LOCAL values; sums of both would be something else.
                if not self._in_loop(op, places) and not self.anew:
                    self._coupled(op, late)
            elif not parts or not differentiated:
                self._set(op.results, AFTER)
            else:
                self._coupled(op, late)
            return
        try:
            if not self._in_loop(op, places) and not self.anew:
                self._mixed(op)
        except CouplingError:
            if differentiated:
                raise
            self._set(op.results, AFTER)  # no part of the backward pass waits for it

    def _adds_up_later(self, op: Op) -> bool:
        """Whether an op, the only reader of a sum, stores it with more digits, and so is added up with them, or moves
        it, which may come before that.
        """
        if not op.operands or self.places[op.operands[0]] != SUM or self.readers[op.operands[0]] != 1:
            return False
        before, after = self.values[op.operands[0]].dtype, self.values[op.results[0]].dtype
        if op.primitive == "convert_element_type":
            return (before, after) in {("bfloat16", "float32"), ("float16", "float32")}
        return op.primitive in ("reshape", "squeeze", "transpose")

    def _in_loop(self, op: Op, places: Sequence[int]) -> bool:
        """Place an op of the loop; False if no action of its rule fits."""
        if AFTER in places:
            return False
        if op.loop is not None:
            return self._region(op)
        action = self._action(op, places)
        if action is None:
            return False
        self.actions[op.id] = action.name
        mixed = LOCAL in places
        for v, p in zip(op.results, action.results, strict=True):
            self.places[v] = LOCAL if v in self.local or (p == SAME and mixed) else p
        return True

    def _action(self, op: Op, places: Sequence[int], results: Sequence[int] | None = None) -> Action | None:
        """The action that takes operands placed so, and (if given) leaves results placed so."""
        repeat: Action | None = None
        for action in actions(op.rule):
            if action.factor is not None and op.rule.factors[action.factor].kind is Kind.HALO:
                continue
            if results is not None and tuple(action.results) != tuple(results):
                continue
            if not all(
                self._convertible(v, p, wanted)
                for v, p, wanted in zip(op.operands, places, action.operands, strict=True)
            ):
                continue
            if named(op.rule, self.mesh, (action.name,)) is None:
                continue
            if action.name == REPEAT:
                repeat = action
                continue
            if results is not None or any(p not in (SAME, LOCAL) for p in places):
                return action
        return repeat

    def _convertible(self, v: int, place: int, wanted: int) -> bool:
        if place == wanted or (place == LOCAL and wanted == SAME):
            return True
        if place == LOCAL and wanted == SUM:
            return self.values[v].dtype.startswith(("float", "bfloat", "complex"))  # has an M-th part
        if place not in (SAME, LOCAL):
            return False
        if wanted >= 0:
            return not self.values[v].literal and self.values[v].shape[wanted] % self.mesh[0] == 0
        return wanted == SUM

    def _region(self, op: Op) -> bool:
        """Place a loop, branch or condition: what goes round keeps one placement."""
        ports = region_ports(op)
        held: dict[int, int] = dict.fromkeys(range(len(ports)), SAME)
        while True:
            for k, port in enumerate(ports):
                for v, stacked in port.makes:
                    self.places[v] = _shift(held[k], stacked)
            for region in op.regions:
                for held_op in region.ops:
                    if not self._inner_op(held_op):
                        return False
            changed = False
            control = SAME
            for k, port in enumerate(ports):
                place = held[k]
                for v, stacked in port.reads:
                    if self.values[v].literal:
                        continue
                    inner = _shift(self.places[v], -stacked)
                    if inner == _LENGTH:
                        self._coupled(op, [v], "runs over the examples of the batch one by one")
                        return False
                    joined = _joined(place, inner)
                    # No collective follows from a sum over time, so it may pass where one over devices may not.
                    if joined is None or (is_sum(joined) and not port.makes):
                        self._coupled(op, [v])
                        return False
                    place = joined
                changed |= place != held[k]
                held[k] = place
                control = control if port.makes else place
            if not changed and control == LOCAL:
                # Which branch runs, or how often, differs: so does what comes out, whatever it is made of.
                for k, port in enumerate(ports):
                    if held[k] == SAME and any(v in op.results for v, _ in port.makes):
                        held[k], changed = LOCAL, True
            if not changed:
                return True

    def _inner_op(self, op: Op) -> bool:
        places = [self.places[v] for v in op.operands]
        if all(p == SAME for p in places):
            for v in op.results:
                self.places[v] = SAME
            self.actions.pop(op.id, None)
            return True
        if self._in_loop(op, places):
            return True
        if not self.anew:
            late = [v for v, p in zip(op.operands, places, strict=True) if p <= SUM]
            self._coupled(op, late) if late else self._mixed(op)
        return False

    def _set(self, ids: Iterable[int], place: int) -> None:
        for v in ids:
            self.places[v] = place

    def _makes(self, op: Op, results: Sequence[int]) -> Action | None:
        """The action that leaves an op's results placed so, if its operands are whole."""
        action = self._action(op, [self.places[v] for v in op.operands], results)
        return action if self.whole.isdisjoint(op.results) else None

    # what cannot be cut

    def _mixed(self, op: Op) -> None:
        """An op that joins different examples of the batch, such as a sort or a product of the batch with itself."""
        parts = [v for v in op.operands if self.places[v] >= 0]
        if all(self._light(v) for v in parts):
            self._want_whole(op.results)
            return
        raise CouplingError(
            f"{self.step.name} cannot be cut into {self.mesh[0]} micro-batches: {op.primitive} at {op.where.line} "
            "joins examples of the whole batch. Micro-batching "
            "is exact where examples meet only in sums; use microbatches=1, or move this op out of "
            "the differentiated part."
        )  # fmt: skip

    def _coupled(self, op: Op, late: Sequence[int], how: str = "") -> None:
        """A finished sum is needed by every example: compute it before, estimate it, or give up."""
        roots = self._roots(late)
        if roots and all(self._light(v) for v in roots) and not how:
            self._want_whole(roots)
            return
        adds = all(self.maker[v].primitive in _ADDS for v in roots)
        if self.per_microbatch and roots and adds and not how and not roots <= self.local:
            self.anew |= roots - self.local
            self.local |= roots
            return
        advice = (
            "Options(per_microbatch=True) to compute such sums over each micro-batch alone (as GPipe does for batch "
        )
        advice = advice + "normalisation), or " if roots and adds and not how and not self.per_microbatch else ""
        lines = sorted({f"{self.maker[v].primitive} at {self.maker[v].where.line}" for v in roots})
        how = how or f"uses, for every example, what {' and '.join(lines) or 'an earlier op'} sums over the whole batch"
        raise CouplingError(
            f"{self.step.name} couples the examples of its batch, so {self.mesh[0]} micro-batches cannot compute the "
            f"same: {op.primitive} at {op.where.line} {how}. Use {advice}microbatches=1."
        )

    def _want_whole(self, ids: Iterable[int]) -> None:
        found = set(ids) - self.whole
        if not found:
            raise InternalError(
                f"timing {self.step.name} in {self.mesh[0]} micro-batches: no end, values {sorted(ids)}"
            )
        self.anew |= found
        self.whole |= found

    def _light(self, v: int) -> bool:
        """Whether a value is computed from the data alone, without any matrix product, and outside of loops."""
        if v not in self.outside:
            return False
        state = {self.graph.inputs[i] for i, _ in self.step.state}
        seen: set[int] = set()
        stack = [v]
        while stack:
            w = stack.pop()
            if w in seen:
                continue
            seen.add(w)
            op = self.maker.get(w)
            if op is None:
                if w in state and self.values[w].shape:
                    return False
                continue
            if op.primitive in HEAVY or op.loop is not None or op.opaque:
                return False
            stack.extend(op.operands)
        return True

    def _roots(self, ids: Iterable[int]) -> set[int]:
        """The sums over the batch that values are computed from."""
        found: set[int] = set()
        seen: set[int] = set()
        stack = list(ids)
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            if not is_sum(self.places[v]) and self.places[v] != AFTER:
                continue
            # What a sum is added to is no part of the sum: an estimate is made where the examples are added up.
            sources: Sequence[int] = self.maker[v].operands if v in self.maker else ()
            if self.places[v] != AFTER:
                sources = self.passed.get(v, sources)
            sums = [w for w in sources if is_sum(self.places[w]) or self.places[w] == AFTER]
            stack.extend(sums)
            if not sums and v in self.maker:
                found.add(v)
        return found

    def _joined_later(self, v: int) -> bool:
        """Whether a value of the loop is put together from parts, not added up."""
        return self.places[v] >= 0 or (self.places[v] == LOCAL and self.mesh == (1,))

    # what runs when

    def timing(self) -> Timing:
        before: dict[int, None] = {}
        loop: dict[int, None] = {}
        after: dict[int, None] = {}
        early: set[int] = set()
        inside: set[int] = set()
        late = {v for v in self.graph.outputs if not self.values[v].literal}
        for op in reversed(self.graph.ops):
            for v in op.results:
                place = self.places[v]
                again = place == SAME and v in inside and op.primitive in _MOVED and v not in self.whole
                if again:
                    loop[op.id] = None
                    inside.update(op.operands)
                    self.actions[op.id] = REPEAT
                if v in early or (place == SAME and (v in late or (v in inside and not again))):
                    before[op.id] = None
                    early.update(op.operands)
                if place == AFTER and v in late:
                    after[op.id] = None
                    late.update(op.operands)
                if place not in (SAME, AFTER) and (v in inside or v in late):
                    loop[op.id] = None
                    inside.update(op.operands)
        wanted = [v for v in sorted(late) if not self.values[v].literal]
        looped = {v for op in self.graph.ops if op.id in loop for v in op.results}
        looped |= {self.graph.inputs[i] for i in self.batch}
        ops = self.graph.ops
        return Timing(
            self.mesh[0],
            dict(self.batch),
            self.places,
            self.actions,
            tuple(op for op in ops if op.id in before),
            tuple(op for op in ops if op.id in loop),
            tuple(op for op in ops if op.id in after),
            tuple(v for v in wanted if v in looped and not self._joined_later(v)),
            tuple(v for v in wanted if v in looped and self._joined_later(v) and v in self.maker),
            frozenset(self.local),
        )


def _with_inner(op: Op) -> Iterator[Op]:
    """An op and those in its regions."""
    yield op
    for region in op.regions:
        yield from region.walk()


def _shift(place: int, by: int) -> int:
    if place < 0:
        return place
    return place + by if place + by >= 0 else _LENGTH


def _joined(a: int, b: int) -> int | None:
    """The placement that both can be brought to, or None."""
    if a == b or b == SAME:
        return a
    if a == SAME:
        return b
    return SUM if {a, b} == {LOCAL, SUM} else None
