"""Executes an instruction list. Both transports share it; it knows no array library.

The list is bound once: registers become places of a list, and every instruction a function without arguments. A
step then calls them one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from autopar.errors import AutoparError, StageError
from autopar.runtime.instructions import Copy, Free, Instruction, Recv, Register, Run, Send, reads, writes

Operation = Callable[[], None]


class Ports(Protocol):
    """What a worker can do with arrays. Each method is called once per instruction, when the list is bound."""

    def run(self, run: Run) -> Callable[..., Sequence[Any]]:
        """The program: arrays in, arrays out. It may return before they are computed."""

    def send(self, send: Send) -> Callable[[Any], None]:
        """Takes an array on its way. It may not wait for the receiver."""

    def receive(self, receive: Recv) -> Callable[[], Any]:
        """Waits for an array."""

    def copy(self, copy: Copy) -> Callable[[Any], Any]:
        """Hands an array to another stage of the worker."""

    def wait(self, arrays: Sequence[Any]) -> None:
        """Returns when the arrays are computed."""


@dataclass(frozen=True, slots=True)
class Span:
    """One measured run of a program: ``start_s`` and ``end_s`` are seconds since the step began."""

    worker: int
    stage: int
    program: str
    microbatch: int | None
    start_s: float
    end_s: float


class Interpreter:
    """One worker's instruction list, bound to its ports.

    Args:
      worker: its number.
      code: its instructions.
      ports: what it can do with arrays.
    """

    def __init__(self, worker: int, code: Sequence[Instruction], ports: Ports):
        self.worker = worker
        self.code = tuple(code)
        self._ports = ports
        self._values: list[Any] = []
        self._slots: dict[Register, int] = {}
        self.operations = tuple(self._bind(instruction) for instruction in self.code)

    def write(self, register: Register, value: Any) -> None:
        """Puts a value into a register: state, or what the driver feeds."""
        self._values[self._slot(register)] = value

    def read(self, register: Register) -> Any:
        """The value of a register; None where there is none."""
        return self._values[self._slot(register)]

    def take(self, register: Register) -> Any:
        """The value of a register, which is then free."""
        value = self.read(register)
        self.write(register, None)
        return value

    def clear(self) -> None:
        """Forgets every value."""
        self._values[:] = [None] * len(self._values)

    def step(self, number: int) -> None:
        """Executes the list once, for step ``number``.

        Raises:
          StageError: an instruction failed.
        """
        at = -1
        try:
            for at, operation in enumerate(self.operations):  # noqa: B007  (read where it failed)
                operation()
        except Exception as error:
            raise self.failure(number, self.code[at], error) from error

    def timed_step(self, number: int, begin: float) -> list[Span]:
        """Executes the list once, waiting for every program before going on.

        Args:
          number: the step.
          begin: what ``time.perf_counter`` said when it began.

        Raises:
          StageError: an instruction failed.
        """
        spans = []
        for instruction, operation in zip(self.code, self.operations, strict=True):
            try:
                start = time.perf_counter()
                operation()
                self._ports.wait([self.read(r) for r in writes(instruction)])
                end = time.perf_counter()
            except Exception as error:
                raise self.failure(number, instruction, error) from error
            if isinstance(instruction, Run):
                spans.append(
                    Span(
                        self.worker,
                        instruction.stage,
                        instruction.program,
                        instruction.microbatch,
                        start - begin,
                        end - begin,
                    )
                )
        return spans

    def failure(self, number: int, instruction: Instruction, error: Exception) -> AutoparError:
        """What the user is told when an instruction of step ``number`` raised ``error``."""
        if isinstance(error, AutoparError):
            return error
        return StageError(
            f"step {number} failed on worker {self.worker} in '{instruction}': {type(error).__name__}: {error}"
        )

    def _slot(self, register: Register) -> int:
        if register not in self._slots:
            self._slots[register] = len(self._values)
            self._values.append(None)
        return self._slots[register]

    def _bind(self, instruction: Instruction) -> Operation:
        slots = {r: self._slot(r) for r in (*reads(instruction), *writes(instruction))}
        match instruction:
            case Run(inputs=inputs, outputs=outputs, donated=donated):
                dead = sorted({slots[r] for r in donated} - {slots[r] for r in outputs})
                program = self._ports.run(instruction)
                return _call(self._values, program, [slots[r] for r in inputs], [slots[r] for r in outputs], dead)
            case Send(source=source):
                return _give(self._values, self._ports.send(instruction), slots[source])
            case Recv(target=target):
                return _get(self._values, self._ports.receive(instruction), slots[target])
            case Copy(source=source, target=target):
                return _move(self._values, self._ports.copy(instruction), slots[source], slots[target])
            case Free(registers=registers):
                return _free(self._values, [self._slot(r) for r in registers])


def donated(code: Iterable[Instruction]) -> frozenset[Register]:
    """The registers whose memory some program of the list reuses: nobody else may hold on to it."""
    return frozenset(register for i in code if isinstance(i, Run) for register in i.donated)


def _call(values: list[Any], program: Callable, inputs: list[int], outputs: list[int], dead: list[int]) -> Operation:
    arguments = _several(inputs)

    def operation() -> None:
        results = program(*arguments(values))
        for slot in dead:
            values[slot] = None
        for slot, result in zip(outputs, results, strict=True):
            values[slot] = result

    return operation


def _several(slots: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(slots) > 1:
        return itemgetter(*slots)  # the fastest way, and a tuple only for two or more
    if not slots:
        return lambda values: ()
    (only,) = slots
    return lambda values: (values[only],)


def _give(values: list[Any], send: Callable[[Any], None], source: int) -> Operation:
    def operation() -> None:
        send(values[source])

    return operation


def _get(values: list[Any], receive: Callable[[], Any], target: int) -> Operation:
    def operation() -> None:
        values[target] = receive()

    return operation


def _move(values: list[Any], copy: Callable[[Any], Any], source: int, target: int) -> Operation:
    def operation() -> None:
        values[target] = copy(values[source])

    return operation


def _free(values: list[Any], slots: list[int]) -> Operation:
    def operation() -> None:
        for slot in slots:
            values[slot] = None

    return operation
