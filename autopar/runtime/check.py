"""Proves instruction lists by executing them without arrays, and orders them for a single thread."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.errors import InternalError
from autopar.runtime.instructions import Instruction, Recv, Register, Send, consumed, fed, fetched, kept, reads, writes
from autopar.schedule import Pipeline


def check_instructions(
    pipeline: Pipeline, lists: Sequence[Sequence[Instruction]]
) -> tuple[tuple[int, Instruction], ...]:
    """Executes the lists of one step abstractly, workers in turn, each until it waits for a message.

    Args:
      pipeline: what they are lists of.
      lists: every worker's instructions.

    Returns:
      One order of all instructions, with their workers, in which each message is sent before it is received: what a
      single thread can follow.

    Raises:
      InternalError: an instruction uses what is not there (never written, freed, or donated), a message is sent twice
        or never received, a receive waits forever, or something other than state and results is left at the end.
    """
    workers = range(len(pipeline.schedule.workers))
    if len(lists) != len(workers):
        raise InternalError(f"there are {len(workers)} workers and {len(lists)} instruction lists")
    alive = [set(kept(pipeline, w) | fed(pipeline, w)) for w in workers]
    dead: list[dict[Register, Instruction]] = [{} for _ in workers]
    mail: dict[tuple[int, Register], tuple[int, Register]] = {}  # (to, target) -> (from, source)
    order: list[tuple[int, Instruction]] = []
    at = [0] * len(workers)
    moved = True
    while moved:
        moved = False
        for w in workers:
            while at[w] < len(lists[w]):
                instruction = lists[w][at[w]]
                if isinstance(instruction, Recv) and (w, instruction.target) not in mail:
                    break
                _execute(w, instruction, alive[w], dead[w], mail)
                order.append((w, instruction))
                at[w] += 1
                moved = True

    stuck = [f"worker {w} waits in '{lists[w][at[w]]}'" for w in workers if at[w] < len(lists[w])]
    if stuck:
        raise InternalError(f"the workers wait for each other, or for what is never sent: {'; '.join(stuck)}")
    for (w, target), (sender, _) in mail.items():
        raise InternalError(f"worker {sender} sends {target}, and worker {w} never receives it")
    for w in workers:
        expected = kept(pipeline, w) | fetched(pipeline, w)
        if lost := sorted(map(str, expected - alive[w])):
            raise InternalError(f"worker {w} ends the step without {', '.join(lost)}")
        if left := sorted(map(str, alive[w] - expected)):
            raise InternalError(f"worker {w} ends the step and never frees {', '.join(left)}")
    return tuple(order)


def _execute(
    worker: int,
    instruction: Instruction,
    alive: set[Register],
    dead: dict[Register, Instruction],
    mail: dict[tuple[int, Register], tuple[int, Register]],
):
    gone = consumed(instruction)
    for register in (*reads(instruction), *gone):
        if register not in alive:
            why = f"is gone after '{dead[register]}'" if register in dead else "was never written"
            raise InternalError(f"worker {worker}, '{instruction}': {register} {why}")
    if isinstance(instruction, Recv):
        sent = mail.pop((worker, instruction.target))
        if sent != (instruction.worker, instruction.source):
            raise InternalError(f"worker {worker}, '{instruction}': it was sent {sent[1]} by worker {sent[0]}")
        if instruction.target in alive:
            raise InternalError(f"worker {worker}, '{instruction}': {instruction.target} is there already")
    if isinstance(instruction, Send):
        if (instruction.worker, instruction.target) in mail:
            raise InternalError(f"worker {worker}, '{instruction}': it was sent before and not yet received")
        mail[instruction.worker, instruction.target] = (worker, instruction.source)
    alive -= gone
    dead.update(dict.fromkeys(gone, instruction))
    alive |= set(writes(instruction))
