"""What a Ray worker's instructions do: call compiled programs, and exchange the parts of arrays with its peers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from autopar.runtime.arrays import sharding
from autopar.runtime.boxes import Box, Piece, boxes, routes, sizes, slices
from autopar.runtime.handover import assembling, stays_on_host
from autopar.runtime.instructions import Copy, Recv, Register, Run, Send
from autopar.runtime.ray.links import Parts, aligned
from autopar.schedule import Pipeline


class Post(Protocol):
    """The way to and from one peer: :class:`~.links.Link` or :class:`~.mail.Mail`."""

    def send(self, tag: int, parts: Parts) -> None:
        """Sends arrays that are ready."""

    def send_later(self, tag: int, parts: Callable[[], Parts]) -> None:
        """Sends arrays that may not be ready: ``parts`` waits for them, elsewhere."""

    def receive(self, tag: int) -> np.ndarray:
        """Waits for a message: its bytes, in memory that nobody else uses."""

    def close(self) -> None:
        """Wakes who waits."""


class Place(NamedTuple):
    """Where an actor stands: it is host ``host`` of ``worker``; ``hosts`` says how many hosts each worker has."""

    worker: int
    host: int
    hosts: tuple[int, ...]

    @property
    def number(self) -> int:
        """Its number among all actors."""
        return self.of(self.worker, self.host)

    def of(self, worker: int, host: int) -> int:
        """The number of another actor."""
        return sum(self.hosts[:worker]) + host


def peers(pipeline: Pipeline, place: Place) -> set[int]:
    """The actors that this one exchanges messages with."""
    worker_of = pipeline.schedule.worker_of
    found = set()
    for transfer in pipeline.transfers:
        ends = worker_of[transfer.source], worker_of[transfer.target]
        if ends[0] != ends[1] and place.worker in ends:
            for pair in _routes(pipeline, place.hosts, *_buffers(transfer)):
                actors = [place.of(worker, host) for worker, host in zip(ends, pair, strict=True)]
                if place.number in actors:
                    found |= set(actors) - {place.number}
    return found


class RayPorts:
    """The ports of one actor.

    Args:
      pipeline: the whole step.
      place: where the actor stands.
      programs: compiled functions, by stage and name.
      meshes: the meshes of its stages, over all its worker's hosts, by stage.
      posts: the ways to its peers, by actor number.
      reused: the registers whose memory some program of this worker reuses.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        place: Place,
        programs: Mapping[tuple[int, str], Callable],
        meshes: Mapping[int, Mesh],
        posts: Mapping[int, Post],
        reused: frozenset[Register],
    ):
        self._pipeline, self._place, self._programs = pipeline, place, programs
        self._meshes, self._posts, self._reused = meshes, posts, reused
        self._channels = {
            (t.target, t.target_buffer): number for number, t in enumerate(pipeline.transfers)
        }  # a buffer is received from one stage
        self.step = 0  # part of every message's tag: a fast stage may be a step ahead

    def run(self, run: Run) -> Callable[..., Sequence[Any]]:
        """The compiled program."""
        return self._programs[run.stage, run.program]

    def send(self, send: Send) -> Callable[[Any], None]:
        """Sends this host's part of an array to every host that needs some of it."""
        tag = self._tag(send.target)
        plan = _routes(self._pipeline, self._place.hosts, send.source[:2], send.target[:2])
        shape = self._pipeline.stages[send.source.stage].buffers[send.source.buffer].shape
        first = self._first_device(send.source.stage)
        ways = [
            (self._posts[self._place.of(send.worker, there)], _taker(pieces, first, shape))
            for (here, there), pieces in plan.items()
            if here == self._place.host
        ]
        keep = send.source in self._reused

        def operation(value: Any) -> None:
            # Host arrays first: what is not a jax.Array takes long to be found out as such.
            pending = not isinstance(value, np.ndarray) and isinstance(value, jax.Array)
            if pending and not value.is_ready():
                if keep:
                    value = jax.numpy.copy(value)  # a later program may take the memory before it is sent
                for post, take in ways:
                    post.send_later(tag(), functools.partial(take, value))
                return
            for post, take in ways:
                parts = take(value)
                post.send(tag(), [np.array(part) for part in parts] if keep else parts)

        return operation

    def receive(self, receive: Recv) -> Callable[[], Any]:
        """Gathers this host's part of an array and puts it onto its devices."""
        tag = self._tag(receive.target)
        plan = _routes(self._pipeline, self._place.hosts, receive.source[:2], receive.target[:2])
        ways = [
            (self._posts[self._place.of(receive.worker, there)], pieces)
            for (there, here), pieces in plan.items()
            if here == self._place.host
        ]
        stage = self._pipeline.stages[receive.target.stage]
        buffer = stage.buffers[receive.target.buffer]
        dtype = np.dtype(buffer.dtype)
        mesh = self._meshes[receive.target.stage]
        where = sharding(buffer, mesh)

        assemble = assembling(where, buffer.shape, buffer.dtype)

        if mesh.devices.size == len(ways) == 1 and ways[0][1][0].shape == buffer.shape:
            ((post, _),) = ways
            on_host = stays_on_host(where, buffer.shape, buffer.dtype)

            def whole() -> Any:
                value = post.receive(tag()).view(dtype).reshape(buffer.shape)
                return value if on_host else assemble([value])

            return whole

        local = [
            box
            for device, box in zip(mesh.devices.flat, boxes(buffer, stage.mesh), strict=True)
            if device.process_index == jax.process_index()
        ]

        def operation() -> Any:
            found: dict[Box, np.ndarray] = {}
            for post, pieces in ways:
                _place(post.receive(tag()), pieces, dtype, found)
            return assemble([found[box] for box in local])

        return operation

    def copy(self, copy: Copy) -> Callable[[Any], Any]:
        """Hands an array to another stage on the same devices."""
        buffer = self._pipeline.stages[copy.target.stage].buffers[copy.target.buffer]
        where = sharding(buffer, self._meshes[copy.target.stage])
        if not where.is_fully_addressable:  # across hosts only a program can change a layout
            return jax.jit(lambda value: jax.numpy.copy(value), out_shardings=where)
        alias = self._reused.isdisjoint((copy.source, copy.target))
        return lambda value: jax.device_put(value, where, may_alias=alias)

    def wait(self, arrays: Sequence[Any]) -> None:
        """Returns when the arrays are computed."""
        jax.block_until_ready(arrays)

    def _tag(self, target: Register) -> Callable[[], int]:
        within = self._channels[target[:2]] << 20 | (target.microbatch or 0)
        return lambda: (self.step & 0xFFFFFF) << 40 | within

    def _first_device(self, stage: int) -> int:
        return self._place.host * self._meshes[stage].devices.size // self._place.hosts[self._place.worker]


def _buffers(transfer) -> tuple[tuple[int, str], tuple[int, str]]:
    return (transfer.source, transfer.buffer), (transfer.target, transfer.target_buffer)


def _routes(
    pipeline: Pipeline, hosts: Sequence[int], source: tuple[int, str], target: tuple[int, str]
) -> dict[tuple[int, int], tuple[Piece, ...]]:
    worker_of = pipeline.schedule.worker_of
    sent, received = (
        boxes(pipeline.stages[stage].buffers[name], pipeline.stages[stage].mesh) for stage, name in (source, target)
    )
    return routes(sent, hosts[worker_of[source[0]]], received, hosts[worker_of[target[0]]])


def _taker(pieces: Sequence[Piece], first: int, shape: tuple[int, ...]) -> Callable[[Any], list[np.ndarray]]:
    """Takes the pieces from the local part of an array; ``first`` is the position of the host's first device."""
    if [piece.shape for piece in pieces] == [shape]:
        return lambda value: [np.asarray(value)]
    wanted = [(piece.device - first, slices(piece.taken)) for piece in pieces]

    def take(value: Any) -> list[np.ndarray]:
        if not isinstance(value, jax.Array):  # what a plain callable returns is whole
            return [np.asarray(value)[index] for _, index in wanted]
        shards = value.addressable_shards
        return [np.asarray(shards[device].data)[index] for device, index in wanted]

    return take


def _place(message: np.ndarray, pieces: Sequence[Piece], dtype: np.dtype, found: dict[Box, np.ndarray]) -> None:
    """Puts the pieces of a message where they belong; one that is a whole box stays where it arrived."""
    at = 0
    for piece in pieces:
        size = math.prod(piece.shape) * dtype.itemsize
        data = message[at : at + size].view(dtype).reshape(piece.shape)
        at += size
        whole = sizes(piece.box)
        if piece.shape == whole:
            found[piece.box] = data
            continue
        if piece.box not in found:
            found[piece.box] = aligned(math.prod(whole) * dtype.itemsize).view(dtype).reshape(whole)
        found[piece.box][slices(piece.placed)] = data
