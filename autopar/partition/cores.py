"""The cores of attention: what lies between its two batched contractions, found by what is computed, not by names.

A core begins with a contraction that has batch dims (queries by keys, one matrix per example and head), and goes on
with ops that are no contractions (scaling, masking, softmax, dropout), up to another contraction. It is attention if
on the way ``exp`` is taken and summed along a dim, and the second contraction sums along that dim: the weighted mean
that softmax makes, whether it divides by the sum, or subtracts its logarithm before. These arrays have an element per
pair of positions, and cost few operations each: they free the most bytes per second of recomputation (Korthikanti et
al. 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198, section 5).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from autopar.ir import Kind, Op, Step
from autopar.partition.loop_stages import backward_ops, floating_ops
from autopar.partition.timing import HEAVY, Timing

_EXPONENTIALS = frozenset({"exp", "exp2"})
_SUMS = frozenset({"reduce_sum"})

Dims = tuple[int | None, ...]  # per dim of a value, the dim of the scores that it runs along


def attention_cores(step: Step, timing: Timing) -> frozenset[int]:
    """Ids of the ops of the forward pass that belong to a core of attention.

    What is computed from the data and keys alone (masks, the random bits of dropout) belongs to it if nothing else of
    the forward pass reads it.
    """
    backward = backward_ops(timing)
    ops = [op for op in timing.loop if op.id not in backward]
    readers: dict[int, list[int]] = {}
    for k, op in enumerate(ops):
        for v in dict.fromkeys(op.operands):
            readers.setdefault(v, []).append(k)
    found: set[int] = set()
    for k, op in enumerate(ops):
        if _batched(op):
            found.update(_Core(ops, readers, k).members())
    floating = floating_ops(step, timing)
    for op in reversed(ops):
        theirs = [k for v in op.results for k in readers.get(v, ())]
        if op.id in floating and _light(op) and theirs and all(ops[k].id in found for k in theirs):
            found.add(op.id)
    return frozenset(found)


def _light(op: Op) -> bool:
    return op.primitive not in HEAVY and op.loop is None and not op.opaque


def _batched(op: Op) -> bool:
    """Whether an op is a contraction with batch dims."""
    if op.primitive != "dot_general":
        return False
    left, right = ({f for dim in operand for f in dim} for operand in op.rule.operands)
    return any(op.rule.factors[f].kind is Kind.PARALLEL for f in left & right)


class _Core:
    """What follows from one contraction's result, up to the next contractions."""

    def __init__(self, ops: Sequence[Op], readers: dict[int, list[int]], first: int) -> None:
        self.ops = ops
        self.readers = readers
        self.first = first
        (scores,) = ops[first].results
        self.dims: dict[int, Dims] = {scores: tuple(range(len(ops[first].rule.results[0])))}
        self.raised: set[int] = set()  # values computed from an exponential
        self.summed: set[int] = set()  # dims of the scores along which exponentials are summed

    def members(self) -> list[int]:
        """Ids of the ops of the core; none if it is no attention."""
        between, ends = self._walk()
        wanted = {v for op in ends for v in op.operands if self._averaged(op, v)}
        if not wanted:
            return []
        found = [self.ops[self.first].id]
        for op in reversed(between):
            # What nothing reads here is read by the backward pass alone.
            if not wanted.isdisjoint(op.results) or not any(v in self.readers for v in op.results):
                found.append(op.id)
                wanted.update(op.operands)
        return found

    def _walk(self) -> tuple[list[Op], list[Op]]:
        """The light ops that follow, in order, and the contractions that end them."""
        between: list[Op] = []
        ends: list[Op] = []
        ahead = [k for v in self.dims for k in self.readers.get(v, ())]
        heapq.heapify(ahead)
        last = self.first
        while ahead:
            k = heapq.heappop(ahead)
            if k == last:
                continue
            last, op = k, self.ops[k]
            if not _light(op):
                ends.append(op)
                continue
            between.append(op)
            self._follow(op)
            for v in op.results:
                for reader in self.readers.get(v, ()):
                    heapq.heappush(ahead, reader)
        return between, ends

    def _follow(self, op: Op) -> None:
        """Note along which dims of the scores an op's results run, and whether it sums exponentials."""
        along: dict[int, int] = {}  # factor -> dim of the scores
        for v, operand in zip(op.operands, op.rule.operands, strict=True):
            for dim, label in zip(operand, self.dims.get(v, ()), strict=False):
                if len(dim) == 1 and label is not None:
                    along[dim[0]] = label
        for v, result in zip(op.results, op.rule.results, strict=True):
            self.dims[v] = tuple(along.get(dim[0]) if len(dim) == 1 else None for dim in result)
        if op.primitive in _EXPONENTIALS or not self.raised.isdisjoint(op.operands):
            if op.primitive in _SUMS and not self.raised.isdisjoint(op.operands):
                kept = {f for dim in op.rule.results[0] for f in dim}
                self.summed.update(label for f, label in along.items() if f not in kept)
            self.raised.update(op.results)

    def _averaged(self, op: Op, v: int) -> bool:
        """Whether a contraction sums ``v``, which exponentials lead to, along the dim along which they are summed."""
        if op.primitive != "dot_general" or v not in self.raised or not _batched(op):
            return False
        operand = op.rule.operands[op.operands.index(v)]
        kept = {f for dim in op.rule.results[0] for f in dim}
        summed = {f for dim in operand for f in dim} - kept
        labels = zip(operand, self.dims[v], strict=True)
        return any(label in self.summed for dim, label in labels if len(dim) == 1 and dim[0] in summed)


__all__ = ["attention_cores"]
