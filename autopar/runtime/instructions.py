"""What every worker does in one step, as a flat list: run a program, send, receive, copy, free.

A *register* is one array of one step: a buffer of a stage, and the micro-batch where there is one for each. The list
of a worker follows from the pipeline alone:

- programs run in this order: ``prepare`` of its stages, the scheduled tasks, then the updates in rounds
  (``update.0`` of its stages, ``update.1`` of its stages, ...), so that a round may read what others sent in an
  earlier one;
- a buffer is sent right after its last write of the step (a buffer that is fed: at the start). Sends do not wait;
- it is received right before the first program that reads it. As sends do not wait, a worker then waits only for
  what its next program needs: if a deadlock remains, the programs themselves wait for each other;
- two stages of one worker hand over by a copy, without a message;
- a register is freed after its last use. State stays, and so do the step's results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from autopar.errors import InternalError
from autopar.schedule import Buffer, Kind, Pipeline, Stage, Transfer

_PROGRAMS = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.WEIGHT: "weight"}


class Register(NamedTuple):
    """One array of one step: ``buffer`` of ``stage``; ``microbatch`` is None where there is one per step."""

    stage: int
    buffer: str
    microbatch: int | None = None

    def __str__(self) -> str:
        return f"{self.stage}:{self.buffer}" + ("" if self.microbatch is None else f"[{self.microbatch}]")


@dataclass(frozen=True, slots=True)
class Run:
    """Call ``program`` of ``stage`` on ``inputs``; ``donated`` are those of them that are dead after it."""

    stage: int
    program: str
    microbatch: int | None
    inputs: tuple[Register, ...]
    outputs: tuple[Register, ...]
    donated: tuple[Register, ...] = ()

    def __str__(self) -> str:
        of = "" if self.microbatch is None else f" of micro-batch {self.microbatch}"
        return f"run {self.program} of stage {self.stage}{of}"


@dataclass(frozen=True, slots=True)
class Send:
    """Hand ``source`` to ``worker``, where it becomes ``target``."""

    source: Register
    target: Register
    worker: int

    def __str__(self) -> str:
        return f"send {self.source} to worker {self.worker} as {self.target}"


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait until ``worker`` has sent ``source``, which becomes ``target``."""

    source: Register
    target: Register
    worker: int

    def __str__(self) -> str:
        return f"receive {self.target} from worker {self.worker}"


@dataclass(frozen=True, slots=True)
class Copy:
    """``source`` becomes ``target``, of another stage of the same worker."""

    source: Register
    target: Register

    def __str__(self) -> str:
        return f"copy {self.source} to {self.target}"


@dataclass(frozen=True, slots=True)
class Free:
    """Forget ``registers``."""

    registers: tuple[Register, ...]

    def __str__(self) -> str:
        return f"free {', '.join(map(str, self.registers))}"


Instruction = Run | Send | Recv | Copy | Free


def instructions(pipeline: Pipeline) -> tuple[tuple[Instruction, ...], ...]:
    """Every worker's list.

    Raises:
      InternalError: the pipeline contradicts itself: a transfer between unlike buffers, of state, of a received
        buffer, or to a buffer that nobody reads.
    """
    for transfer in pipeline.transfers:
        _check_transfer(pipeline, transfer)
    return tuple(tuple(_worker(pipeline, w)) for w in range(len(pipeline.schedule.workers)))


def registers(buffer: Buffer, stage: int, microbatches: int) -> tuple[Register, ...]:
    """Every register of a buffer."""
    if buffer.scope != "microbatch":
        return (Register(stage, buffer.name),)
    return tuple(Register(stage, buffer.name, m) for m in range(microbatches))


def held(pipeline: Pipeline, worker: int) -> tuple[Stage, ...]:
    """The stages of a worker, in order."""
    return tuple(s for s in pipeline.stages if pipeline.schedule.worker_of[s.index] == worker)


def fed(pipeline: Pipeline, worker: int) -> frozenset[Register]:
    """The registers of a worker that the driver fills before the step."""
    return frozenset(
        register
        for feed in pipeline.feeds
        if pipeline.schedule.worker_of[feed.stage] == worker
        for register in registers(
            pipeline.stages[feed.stage].buffers[feed.buffer], feed.stage, pipeline.schedule.microbatches
        )
    )


def kept(pipeline: Pipeline, worker: int) -> frozenset[Register]:
    """The registers of a worker's state, which live from step to step."""
    return frozenset(
        Register(stage.index, buffer.name)
        for stage in held(pipeline, worker)
        for buffer in stage.buffers.values()
        if buffer.scope == "state"
    )


def fetched(pipeline: Pipeline, worker: int) -> frozenset[Register]:
    """The registers of a worker that hold results at the end of a step."""
    return frozenset(
        Register(fetch.stage, fetch.buffer)
        for fetch in pipeline.fetches
        if pipeline.schedule.worker_of[fetch.stage] == worker
    )


def _worker(pipeline: Pipeline, worker: int) -> Iterator[Instruction]:
    code = list(_with_transfers(pipeline, worker, list(_runs(pipeline, worker))))
    last: dict[Register, int] = dict.fromkeys(sorted(fed(pipeline, worker), key=str), -1)
    for at, instruction in enumerate(code):
        last.update(dict.fromkeys((*reads(instruction), *writes(instruction)), at))
    stays = kept(pipeline, worker) | fetched(pipeline, worker)
    dying: dict[int, list[Register]] = {}
    for register, at in last.items():
        if register not in stays and not (at >= 0 and register in consumed(code[at])):
            dying.setdefault(at, []).append(register)
    if -1 in dying:
        yield Free(tuple(dying[-1]))
    for at, instruction in enumerate(code):
        yield instruction
        if at in dying:
            yield Free(tuple(dying[at]))


def reads(instruction: Instruction) -> tuple[Register, ...]:
    """The registers that an instruction reads."""
    match instruction:
        case Run(inputs=inputs):
            return inputs
        case Send(source=source) | Copy(source=source):
            return (source,)
    return ()


def writes(instruction: Instruction) -> tuple[Register, ...]:
    """The registers that an instruction writes."""
    match instruction:
        case Run(outputs=outputs):
            return outputs
        case Recv(target=target) | Copy(target=target):
            return (target,)
    return ()


def consumed(instruction: Instruction) -> frozenset[Register]:
    """The registers that are dead after an instruction: freed, or donated and not written again."""
    match instruction:
        case Run(donated=donated, outputs=outputs):
            return frozenset(donated) - frozenset(outputs)
        case Free(registers=freed):
            return frozenset(freed)
    return frozenset()


def _runs(pipeline: Pipeline, worker: int) -> Iterator[Run]:
    stages = held(pipeline, worker)
    for stage in stages:
        yield from _run(pipeline, stage, "prepare", None)
    for task in pipeline.schedule.workers[worker]:
        yield from _run(pipeline, pipeline.stages[task.stage], _PROGRAMS[task.kind], task.microbatch)
    for name in _updates(p for stage in stages for p in stage.programs):
        for stage in stages:
            yield from _run(pipeline, stage, name, None)


def _updates(names: Iterable[str]) -> list[str]:
    found = {name for name in names if name.startswith("update.")}
    return sorted(found, key=lambda name: int(name.removeprefix("update.")))


def _run(pipeline: Pipeline, stage: Stage, name: str, microbatch: int | None) -> Iterator[Run]:
    program = stage.programs.get(name)
    if program is None:
        return

    def of(buffer: str) -> tuple[Register, ...]:
        if stage.buffers[buffer].scope != "microbatch":
            return (Register(stage.index, buffer),)
        if microbatch is not None:
            return (Register(stage.index, buffer, microbatch),)
        return registers(stage.buffers[buffer], stage.index, pipeline.schedule.microbatches)

    def each(buffers: Iterable[str]) -> tuple[Register, ...]:
        return tuple(register for buffer in buffers for register in of(buffer))

    donated = each(b for b in program.inputs if b in program.donated)
    yield Run(stage.index, name, microbatch, each(program.inputs), each(program.outputs), donated)


def _with_transfers(pipeline: Pipeline, worker: int, runs: list[Run]) -> Iterator[Instruction]:
    """Adds every receive right before its first reader, and every send right after its last writer."""
    first: dict[Register, int] = {}
    last: dict[Register, int] = dict.fromkeys(fed(pipeline, worker), -1)
    for at, run in enumerate(runs):
        for register in run.inputs:
            first.setdefault(register, at)
        last.update(dict.fromkeys(run.outputs, at))

    before: dict[int, list[Instruction]] = {}
    after: dict[int, list[Instruction]] = {}
    worker_of = pipeline.schedule.worker_of
    for transfer in pipeline.transfers:
        here, there = worker_of[transfer.source], worker_of[transfer.target]
        for source, target in _registers(pipeline, transfer):
            if there == worker and target not in first:
                raise InternalError(f"{_words(transfer)} brings {target}, which no program of its stage reads")
            if here == worker and source not in last:
                raise InternalError(f"{_words(transfer)} takes {source}, which no program of its stage writes")
            if here == there == worker:
                after.setdefault(last[source], []).append(Copy(source, target))
            elif here == worker:
                after.setdefault(last[source], []).append(Send(source, target, there))
            elif there == worker:
                before.setdefault(first[target], []).append(Recv(source, target, here))

    yield from after.get(-1, ())
    for at, run in enumerate(runs):
        yield from before.get(at, ())
        yield run
        yield from after.get(at, ())


def _registers(pipeline: Pipeline, transfer: Transfer) -> Iterator[tuple[Register, Register]]:
    source = pipeline.stages[transfer.source].buffers[transfer.buffer]
    target = pipeline.stages[transfer.target].buffers[transfer.target_buffer]
    microbatches = pipeline.schedule.microbatches
    return zip(
        registers(source, transfer.source, microbatches),
        registers(target, transfer.target, microbatches),
        strict=True,
    )


def _check_transfer(pipeline: Pipeline, transfer: Transfer):
    source = pipeline.stages[transfer.source].buffers[transfer.buffer]
    target = pipeline.stages[transfer.target].buffers[transfer.target_buffer]
    if (source.shape, source.dtype, source.scope) != (target.shape, target.dtype, target.scope):
        raise InternalError(f"{_words(transfer)} joins unlike buffers: {source} and {target}")
    if source.scope == "state":
        raise InternalError(f"{_words(transfer)} moves state, which stays where it is")
    if any((t.target, t.target_buffer) == (transfer.source, transfer.buffer) for t in pipeline.transfers):
        raise InternalError(f"{_words(transfer)} forwards a received buffer; take it from the stage that makes it")


def _words(transfer: Transfer) -> str:
    return f"the transfer {transfer.source}:{transfer.buffer} -> {transfer.target}:{transfer.target_buffer}"
