"""Digests by which equal pieces of a step are planned once: of structure, parameters and shapes.

Values are numbered as they appear, so equal layers of a model have equal digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from autopar.ir import Op, Step
from autopar.partition.staging import StageSection
from autopar.partition.timing import Timing


def ops_digest(step: Step, ops: Sequence[Op]) -> str:
    """Of ops, in order."""
    digest = _Digest(step)
    digest.ops(ops)
    return digest.hex()


def stage_digest(step: Step, timing: Timing, info: StageSection) -> str:
    """Of all that a stage's plan depends on: what it does, but not when it gets what it waits for."""
    digest = _Digest(step)
    section = info.section
    for values in (section.whole, section.parts, info.feeds):
        digest.values(values)
    for ops in (section.before, section.loop, section.after):
        digest.ops(ops, timing, info)
    for values in (section.summed, section.stacked, section.wholes_out, section.parts_out):
        digest.values(values)
    digest.say(len(info.state), info.fed, timing.microbatches)
    return digest.hex()


class _Digest:
    def __init__(self, step: Step) -> None:
        self.known = step.graph.values
        self.numbers: dict[int, int] = {}
        self.digest = hashlib.blake2s(digest_size=16)

    def hex(self) -> str:
        return self.digest.hexdigest()

    def say(self, *words: object) -> None:
        self.digest.update(repr(words).encode())

    def values(self, ids: Iterable[int]) -> None:
        self.say()
        for v in ids:
            value = self.known[v]
            self.say(self.numbers.setdefault(v, len(self.numbers)), value.dtype, value.shape)

    def ops(self, ops: Iterable[Op], timing: Timing | None = None, info: StageSection | None = None) -> None:
        for op in ops:
            self.say(op.primitive, op.params, op.loop)
            self.values((*op.operands, *op.results))
            if timing is not None:
                places = [timing.places.get(v) for v in (*op.operands, *op.results)]
                self.say(timing.actions.get(op.id), places, [v in timing.local for v in op.results])
            if info is not None:
                self.say(op.id in info.backward, op.id in info.weight)
            for region in op.regions:
                self.values((*region.inputs, *region.constants))
                self.ops(region.ops, timing)
                self.values(region.outputs)


__all__ = ["ops_digest", "stage_digest"]
