"""A step cut into stages, as the runtime runs it: stages, their programs, and the arrays between them. Plain data.

A *buffer* is a named array of one stage. ``scope`` says how many of it there are and how long it lives:

- ``state``: one, kept from step to step on the stage's devices;
- ``step``: one per step (a batch that is not cut, prepared parameters, accumulators, results);
- ``microbatch``: one per micro-batch and step (activations, gradients of activations, parts of the batch).

A *program* reads and writes buffers of its stage by name. The programs of a stage run in this order in every
step: ``prepare`` once; ``forward``, ``backward`` and ``weight`` once for each micro-batch, as the schedule says;
``update.0``, ``update.1``, ... once. A program that is not there has nothing to do. A program of a micro-batch
reads and writes that micro-batch's own buffers of scope ``microbatch``. A program that runs once and reads such a
buffer gets all of them, one argument each, in order of micro-batches. A name among both ``inputs`` and ``outputs`` is
updated in place (accumulators, state).

A *transfer* hands a buffer of one stage to another stage as soon as it is written for the last time in the step
(what is fed: at its start): for scope ``microbatch`` once per micro-batch, for ``step`` once. It arrives in the layout
of the destination's buffer. State is not transferred, nor is a received buffer handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.schedule.task import Schedule

Spec = tuple[tuple[str, ...], ...]  # per tensor dim, the mesh axes that split it, major to minor


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named array of a stage.

    Attributes:
      name: unique within the stage.
      shape: global shape (of one micro-batch's part, where ``scope`` is ``microbatch``).
      dtype: numpy dtype name. Random keys travel as their words (uint32).
      spec: how it lies on the stage's mesh.
      scope: ``state``, ``step`` or ``microbatch``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: Spec
    scope: str


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled function of a stage.

    Attributes:
      name: ``prepare``, ``forward``, ``backward``, ``weight``, ``update.0``, ...
      inputs: buffer names, in the order of the function's arguments.
      outputs: buffer names, in the order of its results.
      donated: inputs whose memory the program may reuse: they are dead after it, or written by it again.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    donated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      index: its number.
      mesh: logical mesh: (axis name, size), outermost first.
      buffers: by name.
      programs: by name.
    """

    index: int
    mesh: tuple[tuple[str, int], ...]
    buffers: Mapping[str, Buffer]
    programs: Mapping[str, Program]


@dataclass(frozen=True, slots=True)
class Transfer:
    """``buffer`` of stage ``source`` becomes ``target_buffer`` of stage ``target``; both have one scope and shape."""

    source: int
    buffer: str
    target: int
    target_buffer: str


@dataclass(frozen=True, slots=True)
class Feed:
    """An argument of the step that the driver hands to a stage in every step.

    Attributes:
      argument: index among the flat arguments of the step.
      stage, buffer: where it goes.
      dim: the dim that is cut into micro-batches, where the buffer's scope is ``microbatch``; None for ``step``.
    """

    argument: int
    stage: int
    buffer: str
    dim: int | None


@dataclass(frozen=True, slots=True)
class Keep:
    """A leaf of the state that stays on a stage.

    Attributes:
      argument: index among the flat arguments; its first value comes from the caller.
      result: index among the flat results: its successor.
      stage, buffer: where it lies, scope ``state``. The update writes the successor into the same buffer. A leaf
        may be kept by several stages (tied parameters, step counters); all then hold equal values.
    """

    argument: int
    result: int
    stage: int
    buffer: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """A result of the step that is not state: buffer ``buffer`` (scope ``step``) of ``stage`` is result ``result``."""

    result: int
    stage: int
    buffer: str


@dataclass(frozen=True)
class Pipeline:
    """A step cut into stages.

    Attributes:
      name: the step function.
      schedule: the order of tasks; a worker holds one stage or, interleaved, several of one mesh.
      stages: in order.
      transfers: between stages.
      feeds, keeps, fetches: what comes from the caller, stays, and goes back.
    """

    name: str
    schedule: Schedule
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    feeds: tuple[Feed, ...]
    keeps: tuple[Keep, ...]
    fetches: tuple[Fetch, ...]
