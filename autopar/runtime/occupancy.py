"""What a pipeline's workers hold over a step, from their lists and from XLA's figures for each program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autopar.ir import item_bytes
from autopar.lower import Memory
from autopar.runtime.instructions import Register, Run, consumed, fed, instructions, kept, writes
from autopar.schedule import Buffer, Pipeline, Stage


def peak_bytes(pipeline: Pipeline, used: Sequence[Mapping[str, Memory]]) -> tuple[int, ...]:
    """Bytes on one device of each worker when it holds most.

    A worker holds its state, what was fed and not yet freed, and what its programs handed to each other. While a
    program runs, its results and temporaries come on top, less the results that lie in donated inputs.

    Args:
      pipeline: the stages and their programs.
      used: for each stage, XLA's memory figures by program name.
    """
    return tuple(_peak(pipeline, worker, used) for worker in range(len(pipeline.schedule.workers)))


def _peak(pipeline: Pipeline, worker: int, used: Sequence[Mapping[str, Memory]]) -> int:
    held = kept(pipeline, worker) | fed(pipeline, worker)
    sizes: dict[Register, int] = {}

    def size(register: Register) -> int:
        if register not in sizes:
            stage = pipeline.stages[register.stage]
            sizes[register] = local_bytes(stage.buffers[register.buffer], stage)
        return sizes[register]

    live = set(held)
    total = sum(map(size, live))
    most = total
    for instruction in instructions(pipeline)[worker]:
        new = [register for register in writes(instruction) if register not in live]
        if isinstance(instruction, Run):
            memory = used[instruction.stage][instruction.program]
            most = max(most, total + memory.peak_bytes - memory.argument_bytes)
        dead = [register for register in consumed(instruction) if register in live]
        live.update(new)
        live.difference_update(dead)
        total += sum(map(size, new)) - sum(map(size, dead))
        most = max(most, total)
    return most


def local_bytes(buffer: Buffer, stage: Stage) -> int:
    """Bytes of a buffer on one device of its stage."""
    sizes = dict(stage.mesh)
    parts = math.prod(sizes[axis] for axes in buffer.spec for axis in axes)
    return math.prod(buffer.shape) // parts * item_bytes(buffer.dtype)
