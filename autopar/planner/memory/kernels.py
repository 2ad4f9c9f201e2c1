"""The kernels of a step in execution order, with the arrays each reads and writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.ir import Rule
from autopar.planner.atoms import Atom, Atoms, is_late
from autopar.planner.memory.fusion import Key, Reading, placed, role
from autopar.sharding.layout import LOCAL, SUM, Collective, Move

_NOTHING: dict[Key, None] = {}


@dataclass(eq=False, slots=True)
class Kernel:
    """One kernel, or a whole loop.

    Attributes:
      at: position in the list of atoms; of one that need not run yet, that of its first reader.
      end: the last position at which its reads are held: that of the loop's last atom, else ``at``.
      reads: the stored arrays it reads, in order.
      writes: the arrays it stores.
      body: the kernels of a loop's regions.
      pointwise: it may write a result in the place of an operand that is read for the last time.
      floats: it runs right before its first reader.
      bent: its result has other dims for XLA than for its readers, so that they do not write in its place.
      begins: the arrays among ``reads`` that a loop's carried results begin as, and lie in the place of.
      scratch: an array of whose size it needs one more buffer while it runs.
      all_reduce: (mesh axis, placement reduced, dtype) of an all-reduce.
    """

    at: int
    end: int
    reads: dict[Key, None] = field(default_factory=dict)
    writes: list[Key] = field(default_factory=list)
    body: list[Kernel] = field(default_factory=list)
    pointwise: bool = False
    floats: bool = False
    bent: bool = False
    begins: dict[Key, None] = field(default_factory=dict)
    scratch: Key | None = None
    all_reduce: tuple[int, int, str] | None = None


@dataclass(frozen=True)
class KernelList:
    """The kernels of a step.

    Attributes:
      top: those outside loops, in order; the last reads what leaves the step.
      kept: arrays that lie in buffers of donated arguments: the new state.
      outputs: arrays that leave the step in buffers of their own.
    """

    top: list[Kernel]
    kept: frozenset[Key]
    outputs: frozenset[Key]


def kernels(reading: Reading) -> KernelList:
    """The kernels that the readers of a step need (see :mod:`autopar.planner.memory.fusion`)."""
    return _Builder(placed(reading)).run()


class _Builder:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.atoms: Atoms = reading.atoms
        self.memory: dict[Key, dict[Key, None]] = {}  # array -> what a reader of its buffer reads
        self.inside: dict[Key, dict[Key, None]] = {}  # array -> what a kernel that computes it inside reads
        self.waiting: set[Key] = set()  # copies made at their first reader
        self.top: list[Kernel] = []
        self.loops: dict[int, Kernel] = {}
        holders = {atom.op.id: atom.op for atom in self.atoms.atoms if atom.op is not None and atom.kind == "port"}
        self.around = {o.id: k for k, op in holders.items() for region in op.regions for o in region.ops}
        """Op in a region -> the op that holds the region."""

    def run(self) -> KernelList:
        end = len(self.atoms.atoms)
        final = Kernel(end, end)
        for atom in self.atoms.atoms:
            if atom.kind == "op":
                self.op(atom)
            elif atom.kind == "port":
                self.port(atom)
            else:
                self.argument(atom)
        for loop in self.loops.values():
            loop.body.append(Kernel(loop.end, loop.end))
        for atom in self.atoms.atoms:
            if atom.kind == "port":
                self.leave(atom)
            elif self.atoms.step.apart and atom.op is not None and atom.op.id in self.around:
                self.hand_over(atom)
        kept, outputs = self.results(final)
        self.top.append(final)
        _settle(self.top, {})
        return KernelList(self.top, kept, outputs)

    def results(self, final: Kernel) -> tuple[frozenset[Key], frozenset[Key]]:
        """What the last kernel reads: new state in the place of donated arguments, and other results."""
        step = self.atoms.step
        donated = {step.graph.inputs[i] for i, _ in step.state if i in step.donated}
        kept: dict[Key, None] = {}
        outputs: dict[Key, None] = {}
        for atom in self.atoms.atoms:
            if atom.kind not in ("input", "output"):
                continue
            for slot in range(len(atom.operands)):
                found = self.memory[self.reading.operand(atom, slot)]
                final.reads.update(found)
                (kept if atom.kind == "input" and atom.results[0] in donated else outputs).update(found)
        return frozenset(kept), frozenset(outputs.keys() - kept.keys())

    def scope(self, op_id: int) -> list[Kernel]:
        holder = self.around.get(op_id)
        return self.top if holder is None else self.loops[holder].body

    def argument(self, atom: Atom) -> None:
        for v in atom.results:
            self.memory[v, False, None] = self.inside[v, False, None] = {(v, False, None): None}
            self.copies(v, self.top, atom.index)

    def op(self, atom: Atom) -> None:
        op = atom.op
        assert op is not None
        scope = self.scope(op.id)
        operands = [self.reading.operand(atom, slot) for slot in range(len(atom.operands))]
        is_ = role(op)
        if is_.alias:
            key: Key = (atom.results[0], False, None)
            self.memory[key] = _union([self.memory[k] for k in operands])
            self.inside[key] = _union([self.inside[k] for k in operands])
            self.copies(atom.results[0], scope, atom.index)
            return
        summed = self.reading.use((atom.results[0], False, None)).summed
        side = self.inside if is_.absorbs and not summed else self.memory
        # What XLA fuses into a kernel appends its operands to the kernel's.
        reads = _union([side[k] for k in sorted(operands, key=lambda k: k not in side[k])])
        keys: list[Key] = [(v, False, None) for v in atom.results]
        stored = [k for k in keys if self.reading.use(k).stored]
        if stored:
            kernel = Kernel(atom.index, atom.index, reads, stored, [], pointwise=is_.absorbs, floats=not operands)
            kernel.bent = op.primitive == "dot_general" and _joins_dims(op.rule)
            scope.append(kernel)
        for k in keys:
            self.memory[k] = {k: None} if k in stored else reads
            self.inside[k] = reads if self.reading.use(k).inside else self.memory[k]
        for v in atom.results:
            self.copies(v, scope, atom.index)

    def copies(self, v: int, scope: list[Kernel], at: int) -> None:
        for source, copy, move in self.reading.conversions(v):
            use, local = self.reading.use(copy), move.kind in LOCAL
            reads = self.inside[source] if local else self.memory[source]
            if use.stored:
                reduced = (move.axis, move.src, self.atoms.step.graph.values[v].dtype)
                all_reduce = reduced if move.kind is Collective.ALL_REDUCE else None
                waits = move.src > SUM or any(k in self.waiting for k in reads)  # a partial sum is reduced at once
                scratch = self.rearranged(v, source, copy, move)
                scope.append(Kernel(at, at, reads, [copy], floats=waits, scratch=scratch, all_reduce=all_reduce))
                if waits:
                    self.waiting.add(copy)
            self.memory[copy] = {copy: None} if use.stored else reads
            self.inside[copy] = reads if use.inside else self.memory[copy]

    def rearranged(self, v: int, source: Key, copy: Key, move: Move) -> Key | None:
        """What a collective copies first or last: it joins and cuts along the dim that is outermost in memory."""
        if move.kind is Collective.REDUCE_SCATTER:
            key, dim = source, move.dst
        elif move.kind in (Collective.ALL_GATHER, Collective.ALL_TO_ALL) and self.reading.use(copy).memory:
            key, dim = copy, move.src
        else:
            return None
        outer = self.atoms.step.graph.values[v].shape[:dim]
        return key if move.kind is Collective.ALL_TO_ALL or math.prod(outer) > 1 else None

    def port(self, atom: Atom) -> None:
        """Into a loop: it reads what enters and stores what leaves; inside, what enters has no buffer of its own."""
        op = atom.op
        assert op is not None
        loop = self.loops.get(op.id)
        if loop is None:
            loop = self.loops[op.id] = Kernel(atom.index, self.atoms.ends[op.id])
            self.scope(op.id).append(loop)
        for slot, v in enumerate(atom.operands):
            if v in op.operands:
                read = self.memory[self.reading.operand(atom, slot)]
                loop.reads.update(read)
                if any(w in op.results for w in atom.results):
                    loop.begins.update(read)
        for v in atom.results:
            key: Key = (v, False, None)
            if v in op.results:
                loop.writes.append(key)
                self.memory[key] = self.inside[key] = {key: None}
                self.copies(v, self.scope(op.id), self.atoms.ends[op.id])
                continue
            if self.reading.use(key).stored:
                loop.body.append(Kernel(atom.index, atom.index, {}, [key], [], floats=True))
                self.memory[key] = {key: None}
            else:
                self.memory[key] = _NOTHING
            self.inside[key] = _NOTHING
            self.copies(v, loop.body, atom.index)

    def leave(self, atom: Atom) -> None:
        """Out of a loop's body, at its end. What is added to a carried value is added in its place."""
        op = atom.op
        assert op is not None
        body = self.loops[op.id].body
        for slot, v in enumerate(atom.operands):
            if v in op.operands:
                continue
            key = self.reading.operand(atom, slot)
            if self.replaces(atom, key):
                for kernel in body:
                    kernel.writes = [k for k in kernel.writes if k != key]
            else:
                body[-1].reads.update(self.memory[key])

    def hand_over(self, atom: Atom) -> None:
        """What the backward pass, a program of its own, reads of the forward pass is held until it ends."""
        op = atom.op
        assert op is not None
        if op.where.phase == "forward":
            late = [
                v for v in atom.results if any(is_late(self.atoms.atoms[r]) for r, _ in self.atoms.readers.get(v, ()))
            ]
            for v in late:
                self.loops[self.around[op.id]].body[-1].reads.update(self.memory[v, False, None])

    def replaces(self, port: Atom, key: Key) -> bool:
        """Whether a pointwise op alone reads a carried value and makes its successor, in the same layout."""
        op = port.op
        assert op is not None
        inside = [v for v in port.results if v not in op.results]
        maker = self.atoms.atoms[self.atoms.producer[key[0]][0]]
        if key[2] is not None or len(inside) == len(port.results) or maker.op is None or not role(maker.op).absorbs:
            return False
        readers = {r for v in inside for r, _ in self.atoms.readers.get(v, ())}
        reads = (self.reading.operand(maker, slot) for slot, v in enumerate(maker.operands) if v in inside)
        return readers == {maker.index} and all(read[2] is None for read in reads)


def _joins_dims(rule: Rule) -> bool:
    """Whether a matrix product has several free dims on one side: XLA makes one of them."""
    left, right = ({f for dim in operand for f in dim} for operand in rule.operands)
    both = left & right
    return sum(both.isdisjoint(dim) for dim in rule.results[0] if dim) > 2


def _union(parts: Sequence[dict[Key, None]]) -> dict[Key, None]:
    if len(parts) == 1:
        return parts[0]
    found: dict[Key, None] = {}
    for part in parts:
        found.update(part)
    return found


def _settle(scope: list[Kernel], first: dict[Key, int]) -> None:
    """Let kernels that may wait, wait for their first reader; then put all in order."""
    for kernel in reversed(scope):
        if kernel.floats:
            wanted = [first[k] for k in kernel.writes if k in first]
            if wanted:
                kernel.at = kernel.end = min(wanted)
        for k in kernel.reads:
            first[k] = min(first.get(k, kernel.at), kernel.at)
        if kernel.body:
            _settle(kernel.body, {})
    scope.sort(key=lambda kernel: (kernel.at, not kernel.floats))
