"""What the driver and its actors say to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from autopar.runtime.boxes import Box, slices
from autopar.runtime.interpreter import Span
from autopar.runtime.ray.doors import Address
from autopar.runtime.ray.ports import Place
from autopar.runtime.ray.programs import Parcel
from autopar.schedule import Buffer, Pipeline


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an actor.

    Attributes:
      message: one sentence.
      trace: the actor's traceback.
      consequence: whether it is only that a peer is gone.
    """

    message: str
    trace: str
    consequence: bool


@dataclass(frozen=True, slots=True)
class Hello:
    """How an actor introduces itself.

    Attributes:
      host: its host's name.
      machine: whose process ids it shares.
      pid: its process.
      address: where it listens.
    """

    host: str
    machine: str
    pid: int
    address: Address


@dataclass(frozen=True, slots=True)
class Order:
    """What an actor needs to know about the run. ``programs`` are those of its stages, by stage and name."""

    pipeline: Pipeline
    place: Place
    programs: Mapping[tuple[int, str], Parcel]


Parts = list[tuple[Box, np.ndarray]]  # of an array that may lie on several hosts: which part, and its values


@dataclass(frozen=True, slots=True)
class Step:
    """What an actor needs for one step.

    Attributes:
      ticket: number of the request.
      number: number of the step.
      feeds: small arguments, by index among ``pipeline.feeds``.
      begin: the time (``time.time``) when the step began, if it is to be measured.
    """

    ticket: int
    number: int
    feeds: dict[int, np.ndarray]
    begin: float | None


@dataclass(frozen=True, slots=True)
class Done:
    """An actor's results by index among ``pipeline.fetches`` (on the way: its :data:`Parts`), and what was measured."""

    results: dict[int, Any]
    spans: list[Span]


def parts_of(value: Any) -> Parts:
    """The parts of an array that this actor answers for; waits for them."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        return [(tuple((0, n) for n in value.shape), value)]
    found = []
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            bounds = (index.indices(size)[:2] for index, size in zip(shard.index, value.shape, strict=True))
            found.append((tuple(bounds), np.array(shard.data)))
    return found


def join(buffer: Buffer, number: int, answers: Sequence[Mapping[int, Any]]) -> np.ndarray:
    """An array from the parts that the actors hold."""
    whole = np.empty(buffer.shape, buffer.dtype)
    for answer in answers:
        for box, part in answer.get(number, ()):
            whole[slices(box)] = part
    return whole
