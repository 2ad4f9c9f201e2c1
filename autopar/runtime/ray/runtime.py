"""The driver's side: starts the actors, hands out steps ahead of their results, and ends everything.

A failure anywhere ends the run: it is reported once, as a :class:`~autopar.errors.StageError` that names the cause,
and all actors are released.
"""

from __future__ import annotations

import atexit
import functools
import math
import pickle
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup

from autopar.errors import AutoparError, ClusterError, OptionError, PlanError, StageError
from autopar.runtime.arrays import check_state, cut
from autopar.runtime.instructions import Register
from autopar.runtime.interpreter import Span
from autopar.runtime.launch import Arguments
from autopar.runtime.ray import cluster, session
from autopar.runtime.ray.actor import Host
from autopar.runtime.ray.answers import CAUSE_S, gather, is_bad, rank
from autopar.runtime.ray.control import Control, reach
from autopar.runtime.ray.handle import Handle
from autopar.runtime.ray.messages import Done, Failure, Hello, Order, Step, join
from autopar.runtime.ray.ports import Place, peers
from autopar.runtime.ray.programs import pack
from autopar.schedule import Pipeline

_START_S = 120.0
_INLINE_BYTES = 1 << 15


class RayRuntime:
    """Runs a pipeline on processes of a Ray cluster.

    Args:
      pipeline: the step, cut into stages.
      programs: for each stage, by program name: jitted functions over a mesh like the stage's (an abstract one will
        do), or plain callables, which run as they are.
      hosts: for each worker, the number of actors that its stages span; one each by default.
      platform: what the stages run on: ``cpu``, or ``cuda`` with one GPU per device of a stage.
      accelerators: for each worker, Ray's name of the GPUs that it must get; any by default.
      transfer: how arrays go between workers: ``socket``, ``object_store``, or ``auto``: sockets where they connect.
      ahead: how many steps may be dispatched before the first of them has its results.

    Raises:
      ClusterError: Ray does not have what is asked for.
      OptionError: an option has a value that is not known.
      StageError: an actor could not compile its programs.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        programs: Sequence[Mapping[str, Callable]],
        *,
        hosts: Sequence[int] | None = None,
        platform: str = "cpu",
        accelerators: Sequence[str] | None = None,
        transfer: str = "auto",
        ahead: int = 2,
    ):
        if transfer not in ("auto", "socket", "object_store"):
            raise OptionError(f"transfer={transfer!r} is not known. Known: auto, object_store, socket.")
        self._pipeline = pipeline
        self._hosts = tuple(hosts or [1] * len(pipeline.schedule.workers))
        self._places = [Place(w, h, self._hosts) for w, count in enumerate(self._hosts) for h in range(count)]
        self._devices = _devices_per_host(pipeline, self._hosts)
        self._ahead = ahead
        self._actors: list[Any] = []
        self._hellos: list[Hello] = []
        self._group: PlacementGroup | None = None
        self._control: Control | None = None
        self._error: AutoparError | None = None
        self._tickets = self._steps = 0
        self._flying: deque[_Request] = deque()
        self._loaded = False
        self._closed = False
        parcels = pack(pipeline, programs, platform)
        bundles = [
            cluster.bundle(self._devices[p.worker], platform, accelerators[p.worker] if accelerators else None)
            for p in self._places
        ]
        self._leave = session.enter()
        atexit.register(self.close)
        try:
            self._start(bundles, platform)
            self._build(parcels, transfer)
        except BaseException:  # also Ctrl-C: nothing may be left behind
            self.close()
            raise

    def load_state(self, arguments: Arguments) -> None:
        """Puts the state onto the workers.

        Args:
          arguments: the leaves, by index among the step's flat arguments; others are ignored.

        Raises:
          PlanError: a leaf has another shape or dtype than the pipeline was made for.
        """
        self._need()
        check_state(self._pipeline, arguments)
        stored = {k.argument: ray.put(np.asarray(arguments[k.argument])) for k in self._pipeline.keeps}
        ticket = self._ticket()
        futures = [
            actor.load.remote(
                ticket,
                {
                    Register(k.stage, k.buffer): [stored[k.argument]]
                    for k in self._pipeline.keeps
                    if self._worker(k.stage) == place.worker
                },
            )
            for place, actor in zip(self._places, self._actors, strict=True)
        ]
        self._collect(futures, "loading the state")
        self._loaded = True

    def step(self, arguments: Arguments) -> dict[int, Handle]:
        """Dispatches one step. It waits only where too many are under way.

        Args:
          arguments: what is fed, by index among the step's flat arguments; others are ignored.

        Returns:
          The results that are not state, by index among the step's flat results.

        Raises:
          PlanError: an argument has another shape or dtype than the pipeline was made for.
          StageError: this or an earlier step failed.
        """
        request = self._dispatch(arguments, None)
        return {
            fetch.result: Handle(
                functools.partial(self._assemble, number, request),
                self._pipeline.stages[fetch.stage].buffers[fetch.buffer],
            )
            for number, fetch in enumerate(self._pipeline.fetches)
        }

    def timeline(self, arguments: Arguments) -> tuple[dict[int, np.ndarray], list[Span]]:
        """Runs one step like :meth:`step`, and measures it: every worker waits for each of its programs.

        Returns:
          The results, and when each program ran, in the order in which they started. Between hosts the times are as
          good as their clocks agree.
        """
        self._drain()
        request = self._dispatch(arguments, time.time())
        found = request.get()
        spans = [
            span for place, done in zip(self._places, found, strict=True) if place.host == 0 for span in done.spans
        ]
        results = {f.result: self._assemble(n, request) for n, f in enumerate(self._pipeline.fetches)}
        return results, sorted(spans, key=lambda span: span.start_s)

    def fetch_state(self) -> dict[int, np.ndarray]:
        """The state after every step so far, by index among the step's flat results. It stays on the workers too.

        Raises:
          StageError: a step failed.
        """
        self._need(state=True)
        ticket = self._ticket()
        found = self._collect([actor.state.remote(ticket) for actor in self._actors], "fetching the state")
        return {
            keep.result: join(self._pipeline.stages[keep.stage].buffers[keep.buffer], number, found)
            for number, keep in reversed(list(enumerate(self._pipeline.keeps)))
        }

    def close(self) -> None:
        """Ends the actors, and with the last runtime a Ray that was started here. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._release()
        self._leave()

    def __enter__(self) -> RayRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, bundles: Sequence[Mapping[str, float]], platform: str) -> None:
        self._group = cluster.reserve(bundles)
        environments = [cluster.environment(platform, self._devices[p.worker]) for p in self._places]
        self._actors = cluster.actors(Host, self._group, bundles, environments)
        addresses = cluster.addresses()
        self._hellos = self._collect([actor.hello.remote(addresses) for actor in self._actors], "starting")
        futures = []
        for worker, count in enumerate(self._hosts):
            first = Place(worker, 0, self._hosts).number
            if count > 1:
                port = ray.get(self._actors[first].free_port.remote(), timeout=_START_S)
                coordinator = f"{self._hellos[first].address.host}:{port}"
                futures += [self._actors[first + h].join.remote(coordinator, count, h) for h in range(count)]
        self._collect(futures, "joining the hosts of a stage")
        found = self._collect([actor.devices.remote() for actor in self._actors], "counting devices")
        for place, count in zip(self._places, found, strict=True):
            if count < (need := self._devices[place.worker]):
                raise ClusterError(
                    f"worker {place.worker} needs {need} {platform} devices per host, and "
                    f"{self._hellos[place.number].host} shows {count} to one actor."
                )

    def _build(self, parcels: Sequence[Mapping[str, Any]], transfer: str) -> None:
        orders = [
            Order(
                self._pipeline,
                place,
                {
                    (s, name): parcel
                    for s, named in enumerate(parcels)
                    if self._worker(s) == place.worker
                    for name, parcel in named.items()
                },
            )
            for place in self._places
        ]
        unreachable = [peers(self._pipeline, place) for place in self._places]
        if transfer != "object_store":
            addresses = [hello.address for hello in self._hellos]
            key = secrets.token_bytes(32)
            calls = [a.connect.remote(o, addresses, key) for a, o in zip(self._actors, orders, strict=True)]
            unreachable = self._collect(calls, "connecting")
            attending = [actor.attend.remote(key) for actor in self._actors]
            self._control = reach(self._hellos, key)
            self._collect(attending, "connecting")
        if transfer == "socket" and any(unreachable):
            pairs = [f"{self._name(n)} and {self._name(m)}" for n, ms in enumerate(unreachable) for m in ms if n < m]
            raise ClusterError(
                f"transfer='socket', and no connection could be made between {'; '.join(pairs)}. Open the network "
                f"between them, or use transfer='auto'."
            )
        self._collect(
            [
                actor.build.remote(order, {n: self._actors[n] for n in missing})
                for actor, order, missing in zip(self._actors, orders, unreachable, strict=True)
            ],
            "compiling",
        )

    def _dispatch(self, arguments: Arguments, begin: float | None) -> _Request:
        self._need(state=True)
        while len(self._flying) >= self._ahead:
            self._flying[0].get()
        feeds = self._feeds(arguments)
        ticket, number = self._ticket(), self._steps
        self._steps += 1
        steps = [Step(ticket, number, feeds[place.worker], begin) for place in self._places]
        request = _Request(self, (self._ask_directly if self._control else self._ask_ray)(steps))
        self._flying.append(request)
        return request

    def _ask_directly(self, steps: Sequence[Step]) -> Callable[[], list[Done]]:
        control = self._control
        assert control is not None
        asked = control.ask(pickle.dumps(step) for step in steps)
        return lambda: self._checked(control.answers(asked, CAUSE_S), f"step {steps[0].number}")

    def _ask_ray(self, steps: Sequence[Step]) -> Callable[[], list[Done]]:
        """Small arguments travel in the call, large ones through the store, once for all workers."""
        stored: dict[int, Any] = {}
        futures = []
        for actor, step in zip(self._actors, steps, strict=True):
            large = {n: value for n, value in step.feeds.items() if value.nbytes > _INLINE_BYTES}
            for value in large.values():
                if id(value) not in stored:
                    stored[id(value)] = ray.put(value)
            small = {n: value for n, value in step.feeds.items() if n not in large}
            references = {n: stored[id(value)] for n, value in large.items()}
            futures.append(actor.step.remote(pickle.dumps(replace(step, feeds=small)), references))

        def answers() -> list[Done]:
            found = gather(futures)
            loaded = {n: pickle.loads(a) if isinstance(a, bytes) else a for n, a in found.items()}
            return self._checked(loaded, f"step {steps[0].number}")

        return answers

    def _feeds(self, arguments: Arguments) -> list[dict[int, np.ndarray]]:
        """Per worker, what it is fed, by index among the feeds."""
        values = {f.argument: np.asarray(arguments[f.argument]) for f in self._pipeline.feeds}
        found: list[dict[int, np.ndarray]] = [{} for _ in self._hosts]
        for number, feed in enumerate(self._pipeline.feeds):
            cut(self._pipeline, feed, values[feed.argument])  # refuses a wrong shape here, where the user is
            found[self._worker(feed.stage)][number] = values[feed.argument]
        return found

    def _assemble(self, number: int, request: _Request) -> np.ndarray:
        fetch = self._pipeline.fetches[number]
        buffer = self._pipeline.stages[fetch.stage].buffers[fetch.buffer]
        return join(buffer, number, [done.results for done in request.get()])

    def _drain(self) -> None:
        while self._flying:
            self._flying[0].get()

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets - 1

    def _need(self, state: bool = False) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise StageError(f"the runtime of {self._pipeline.name} is closed. Make a new one.")
        if state and self._pipeline.keeps and not self._loaded:
            raise StageError(f"{self._pipeline.name} has no state: it was not loaded. Call load_state.")

    def _worker(self, stage: int) -> int:
        return self._pipeline.schedule.worker_of[stage]

    def _collect(self, futures: Sequence[Any], doing: str) -> list[Any]:
        """The actors' answers to calls through Ray.

        Raises:
          StageError: one of them failed or is gone; then all are released.
        """
        return self._checked(gather(futures), doing)

    def _checked(self, answers: Mapping[int, Any], doing: str) -> list[Any]:
        if self._error is not None:
            raise self._error
        bad = {n: answer for n, answer in answers.items() if is_bad(answer)}
        if not bad:
            return [answers[n] for n in sorted(answers)]
        self._error = self._report(bad, doing)
        self._release()
        raise self._error

    def _report(self, bad: Mapping[int, Any], doing: str) -> StageError:
        """The cause among several failures: a process that is gone, else a program that failed, else what there is."""
        number = min(bad, key=lambda n: (rank(bad[n]), n))
        failure = bad[number]
        where = self._name(number)
        if isinstance(failure, Failure):
            return StageError(f"{where} failed in {doing}: {failure.message}\n\nIts traceback:\n{failure.trace}")
        return StageError(
            f"{where} is gone: its process ended in {doing}. Was it killed, or did its host run out of memory? "
            f"({failure})"
        )

    def _name(self, number: int) -> str:
        place = self._places[number]
        stages = [str(s.index) for s in self._pipeline.stages if self._worker(s.index) == place.worker]
        word = f"stage{'s' * (len(stages) > 1)} {', '.join(stages)}"
        if number >= len(self._hellos):
            return word
        hello = self._hellos[number]
        part = f", host {place.host} of {self._hosts[place.worker]}" if self._hosts[place.worker] > 1 else ""
        return f"{word} (worker {place.worker}{part}, on {hello.host} at {hello.address.host}, process {hello.pid})"

    def _release(self) -> None:
        if self._control is not None:
            self._control.close()
        here = cluster.machine()
        pids = [hello.pid for hello in self._hellos if hello.machine == here]
        cluster.release(self._actors, self._group, pids)
        self._actors, self._group = [], None
        self._flying.clear()


class _Request:
    """A step under way; ``answers`` waits for what the actors say."""

    def __init__(self, runtime: RayRuntime, answers: Callable[[], list[Done]]):
        self._runtime, self._answers = runtime, answers
        self._found: list[Done] | None = None

    def get(self) -> list[Done]:
        """Every actor's answer. Steps end in order: a failure is that of the first step that failed."""
        flying = self._runtime._flying
        while self._found is None:
            first = flying[0] if flying else self  # none is flying after a failure, which is then raised again
            first._found = first._answers()
            if flying:
                flying.popleft()
        return self._found


def _devices_per_host(pipeline: Pipeline, hosts: Sequence[int]) -> list[int]:
    schedule = pipeline.schedule
    if len(hosts) != len(schedule.workers):
        raise PlanError(f"hosts={list(hosts)} names {len(hosts)} workers; the schedule has {len(schedule.workers)}")
    size = {schedule.worker_of[s.index]: math.prod(n for _, n in s.mesh) for s in pipeline.stages}
    for worker, count in enumerate(hosts):
        if count < 1 or size[worker] % count:
            raise PlanError(f"worker {worker} has {size[worker]} devices, which {count} hosts cannot share equally")
    return [size[worker] // count for worker, count in enumerate(hosts)]
