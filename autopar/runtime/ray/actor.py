"""One host of a worker, as a Ray actor: its devices, its part of the state, and its instruction list.

The driver sends numbered requests. An actor takes them in order of their numbers, one at a time; while one request
waits for its results to be computed, the next is already being dispatched.

A request never raises: what went wrong comes back as a :class:`Failure`, so that the driver can tell the cause from
its consequences. After a failure the actor closes its connections, which wakes its peers, which close theirs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import ray
from jax.sharding import NamedSharding

from autopar.runtime.arrays import cut, mesh_of, sharding
from autopar.runtime.check import check_instructions
from autopar.runtime.handover import feeding
from autopar.runtime.instructions import Register, instructions
from autopar.runtime.interpreter import Interpreter, Span, donated
from autopar.runtime.ray import cluster, doors
from autopar.runtime.ray.doors import Address, Door
from autopar.runtime.ray.links import Link, LinkError
from autopar.runtime.ray.mail import Mail
from autopar.runtime.ray.messages import Done, Failure, Hello, Order, Parts, Step, parts_of
from autopar.runtime.ray.ports import Post, RayPorts, peers
from autopar.runtime.ray.programs import unpack
from autopar.schedule import Buffer

_CONNECT_S = 20.0
_ATTEND_S = 10.0


class Host:
    """See the module. Its methods are called through Ray, and run in several threads."""

    def __init__(self):
        self._turn = threading.Condition()
        self._next = 0
        self._posts: dict[int, Post] = {}
        self._mail: dict[int, Mail] = {}
        self._failed = False

    def hello(self, addresses: Mapping[str, str]) -> Hello:
        """Who and where it is; ``addresses`` are those of Ray's nodes, where the actors listen too."""
        self._door = Door(addresses[ray.get_runtime_context().get_node_id()])
        return Hello(socket.gethostname(), cluster.machine(), os.getpid(), self._door.address)

    def free_port(self) -> int:
        """A port that is free now, for the coordinator of jax.distributed."""
        return doors.free_port(self._door.address.host)

    def join(self, coordinator: str, count: int, number: int) -> Failure | None:
        """Joins the other hosts of its worker."""

        def run() -> None:
            if os.environ["JAX_PLATFORMS"] == "cpu":
                jax.config.update("jax_cpu_collectives_implementation", "gloo")
            bind = coordinator if number == 0 else None  # not on every interface
            jax.distributed.initialize(coordinator, count, number, coordinator_bind_address=bind)

        return self._guard(run)

    def devices(self) -> int | Failure:
        """Number of devices of this actor."""
        return self._guard(lambda: len(jax.local_devices()))

    def connect(self, order: Order, addresses: list[Address], key: bytes) -> set[int] | Failure:
        """Connects to its peers.

        Returns:
          Those that it called and could not reach.
        """
        return self._guard(lambda: self._connect(order, addresses, key))

    def build(self, order: Order, others: Mapping[int, Any]) -> Failure | None:
        """Compiles its programs and binds its instructions; ``others`` are the peers that it reaches only by mail."""

        def run() -> None:
            for number, actor in others.items():
                self._mail[number] = Mail(actor.deliver, order.place.number, _name(number))
                self._posts[number] = self._mail[number]
            self._build(order)

        return self._guard(run)

    def deliver(self, sender: int, tag: int, references: list[Any]) -> None:
        """Takes a message from a peer that has no connection."""
        self._mail[sender].arrive(tag, references)

    def hang_up(self) -> None:
        """Closes every connection."""
        for post in self._posts.values():
            post.close()

    def load(self, ticket: int, leaves: Mapping[Register, list[Any]]) -> Failure | None:
        """Request: takes its part of the state; each leaf is a reference in a list."""

        def run() -> None:
            for register, (reference,) in leaves.items():
                buffer = self._pipeline.stages[register.stage].buffers[register.buffer]
                self._interpreter.write(register, self._place(register.stage, buffer)(ray.get(reference)))

        return self._request(ticket, run)

    def attend(self, key: bytes) -> bool | Failure:
        """Waits for the driver's connection, and takes steps from it from then on.

        Returns:
          Whether the driver came.
        """

        def run() -> bool:
            with contextlib.suppress(TimeoutError), self._door:
                if (caller := self._door.accept(key, _ATTEND_S)) is not None:
                    driver = Link(caller[1], "the driver")
                    threading.Thread(target=self._serve, args=(driver,), name="steps", daemon=True).start()
                    return True
            return False

        return self._guard(run)

    def step(self, request: bytes, stored: Mapping[int, Any] | None = None) -> bytes:
        """Request: runs one step, for a driver without a connection.

        Args:
          request: a pickled :class:`Step`. Ray takes twice as long over the same as objects.
          stored: references to what is fed through the object store, by index among ``pipeline.feeds``. They are not
            part of the pickled request, as Ray would then never free what they refer to.

        Returns:
          A pickled :class:`Done` or :class:`Failure`.
        """
        return self._step(pickle.loads(request), stored or {})()

    def state(self, ticket: int) -> dict[int, Parts] | Failure:
        """Request: its parts of the state, by index among ``pipeline.keeps``."""

        def run() -> dict[int, Parts]:
            keeps = enumerate(self._pipeline.keeps)
            return {
                n: parts_of(self._interpreter.read(Register(k.stage, k.buffer)))
                for n, k in keeps
                if self._mine(k.stage)
            }

        return self._request(ticket, run)

    def _serve(self, driver: Link) -> None:
        """Takes steps until the driver is gone. Where there are results, the connection's own thread waits for them."""
        requests: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(driver, requests), name="requests", daemon=True).start()
        with contextlib.suppress(LinkError), contextlib.closing(driver):
            for number in itertools.count():
                if (request := requests.get()) is None:
                    break
                finish = self._step(pickle.loads(request.data), {})
                if self._fetches:
                    driver.send_later(number, functools.partial(_as_parts, finish))
                else:
                    driver.send(number, _as_parts(finish))

    def _step(self, step: Step, stored: Mapping[int, Any]) -> Callable[[], bytes]:
        """Dispatches a step when its turn comes; what is returned waits for its results and pickles them."""

        def run() -> Done:
            self._feed(step.feeds)
            self._feed({number: ray.get(reference) for number, reference in stored.items()})
            self._ports.step = step.number
            spans: list[Span] = []
            if step.begin is None:
                self._interpreter.step(step.number)
            else:
                began = time.perf_counter() - (time.time() - step.begin)
                spans = self._interpreter.timed_step(step.number, began)
            return Done({n: self._interpreter.take(register) for n, register in self._fetches}, spans)

        found = self._request(step.ticket, run)

        def finish() -> bytes:
            if isinstance(found, Failure):
                return pickle.dumps(found)
            results = self._guard(lambda: {n: parts_of(value) for n, value in found.results.items()})
            return pickle.dumps(results if isinstance(results, Failure) else Done(results, found.spans))

        return finish

    def _connect(self, order: Order, addresses: list[Address], key: bytes) -> set[int]:
        wanted = peers(order.pipeline, order.place)
        me = order.place.number
        missing = set()
        for number in sorted(n for n in wanted if n > me):  # the lower number calls; the other's backlog keeps it
            try:
                channel = doors.connect(addresses[number], me, key, _CONNECT_S)
                self._posts[number] = Link(channel, _name(number))
            except OSError:
                missing.add(number)
        waited = {n for n in wanted if n < me}
        until = time.monotonic() + _CONNECT_S
        while waited - self._posts.keys() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                if (caller := self._door.accept(key, left)) is not None:
                    self._posts[caller[0]] = Link(caller[1], _name(caller[0]))
        return missing | (waited - self._posts.keys())

    def _build(self, order: Order) -> None:
        pipeline, place = order.pipeline, order.place
        self._pipeline, self._worker = pipeline, place.worker
        stages = [s for s in pipeline.stages if self._mine(s.index)]
        meshes = {s.index: mesh_of(s, jax.devices()) for s in stages}
        self._shardings: dict[tuple[int, str], NamedSharding] = {
            (s.index, b.name): sharding(b, meshes[s.index]) for s in stages for b in s.buffers.values()
        }
        programs = {
            (s.index, p.name): unpack(order.programs[s.index, p.name], pipeline, s, p, meshes[s.index])
            for s in stages
            for p in s.programs.values()
        }
        lists = instructions(pipeline)
        check_instructions(pipeline, lists)
        code = lists[place.worker]
        self._ports = RayPorts(pipeline, place, programs, meshes, self._posts, donated(code))
        self._interpreter = Interpreter(place.worker, code, self._ports)
        self._feeding = {
            n: self._place(f.stage, pipeline.stages[f.stage].buffers[f.buffer])
            for n, f in enumerate(pipeline.feeds)
            if self._mine(f.stage)
        }
        self._fetches = [
            (n, Register(f.stage, f.buffer)) for n, f in enumerate(pipeline.fetches) if self._mine(f.stage)
        ]

    def _mine(self, stage: int) -> bool:
        return self._pipeline.schedule.worker_of[stage] == self._worker

    def _feed(self, feeds: Mapping[int, np.ndarray]) -> None:
        # Copies: the store's memory is shared, and a program may reuse that of its arguments.
        for number, value in feeds.items():
            for register, part in cut(self._pipeline, self._pipeline.feeds[number], value).items():
                self._interpreter.write(register, self._feeding[number](part))

    def _place(self, stage: int, buffer: Buffer) -> Callable[[np.ndarray], jax.Array]:
        return feeding(self._shardings[stage, buffer.name], buffer.shape, buffer.dtype)

    def _request(self, ticket: int, run: Callable[[], Any]) -> Any:
        """Runs ``run`` when its turn comes."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == ticket)
        found = Failure("an earlier request failed", "", consequence=True) if self._failed else self._guard(run)
        with self._turn:
            self._next += 1
            self._turn.notify_all()
        return found

    def _guard(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except Exception as error:
            self._failed = True
            self.hang_up()
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            consequence = isinstance(error, LinkError)
            return Failure(str(error), "".join(traceback.format_exception(cause)), consequence)


def _read(driver: Link, requests: queue.SimpleQueue[np.ndarray | None]) -> None:
    """Reads requests while earlier ones are being dispatched: the next batch arrives during a step."""
    with contextlib.suppress(LinkError):
        for number in itertools.count():
            requests.put(driver.receive(number))
    requests.put(None)


def _as_parts(finish: Callable[[], bytes]) -> list[np.ndarray]:
    return [np.frombuffer(finish(), np.uint8)]


def _name(number: int) -> str:
    return f"actor {number}"
