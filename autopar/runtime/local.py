"""All stages in this process, on submeshes of its devices.

One thread follows all workers' lists in an order in which nothing ever waits: jax returns before a program has run,
so the stages overlap although one thread feeds them. A message is put onto the receiver's devices when it is sent.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from autopar.errors import PlanError, StageError
from autopar.runtime.arrays import check_state, cut, sharding
from autopar.runtime.check import check_instructions
from autopar.runtime.handover import feeding, handover
from autopar.runtime.instructions import Copy, Recv, Register, Run, Send, instructions
from autopar.runtime.interpreter import Interpreter, Operation, Span, donated
from autopar.runtime.launch import Arguments
from autopar.schedule import Feed, Pipeline


class LocalRuntime:
    """Runs a pipeline on devices of this process.

    Args:
      pipeline: the step, cut into stages.
      programs: for each stage, its compiled functions by program name: arrays in, a tuple of arrays out.
      meshes: for each stage, its devices. The stages of a worker share theirs.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        programs: Sequence[Mapping[str, Callable[..., Sequence[jax.Array]]]],
        meshes: Sequence[Mesh],
    ):
        self._pipeline = pipeline
        self._shardings: dict[tuple[int, str], NamedSharding] = {
            (s.index, b.name): sharding(b, meshes[s.index]) for s in pipeline.stages for b in s.buffers.values()
        }
        lists = instructions(pipeline)
        order = check_instructions(pipeline, lists)
        reused = frozenset().union(*(donated(code) for code in lists))
        self._ports = _Ports(pipeline, programs, self._shardings, reused)
        self._workers = [Interpreter(w, code, self._ports) for w, code in enumerate(lists)]
        remaining = [iter(worker.operations) for worker in self._workers]
        self._order: list[tuple[int, Operation]] = [(w, next(remaining[w])) for w, _ in order]
        self._steps = 0
        self._loaded = False
        self._feeds = [(feed, self._feeding(feed)) for feed in pipeline.feeds]

    def load_state(self, arguments: Arguments) -> None:
        """Puts the state onto the stages' devices. The given arrays are not donated.

        Args:
          arguments: the leaves, by index among the step's flat arguments; others are ignored.

        Raises:
          PlanError: a leaf has another shape or dtype than the pipeline was made for.
        """
        check_state(self._pipeline, arguments)
        for keep in self._pipeline.keeps:
            where = self._shardings[keep.stage, keep.buffer]
            # A copy, as the programs reuse the memory of the state, and the caller's array is the caller's.
            leaf = arguments[keep.argument]
            # Whatever may_alias says, what is on its device already stays the same buffer.
            leaf = jax.device_put(leaf.copy() if isinstance(leaf, jax.Array) else leaf, where, may_alias=False)
            self._worker(keep.stage).write(Register(keep.stage, keep.buffer), leaf)
        self._loaded = True

    def step(self, arguments: Arguments) -> dict[int, jax.Array]:
        """Runs one step. It returns before the step is computed.

        Args:
          arguments: what is fed, by index among the step's flat arguments; others are ignored.

        Returns:
          The results that are not state, by index among the step's flat results.

        Raises:
          PlanError: an argument has another shape or dtype than the pipeline was made for.
          StageError: a program failed. The state is lost: load it again.
        """
        self._feed(arguments)
        at = -1
        try:
            for at, (_, operation) in enumerate(self._order):  # noqa: B007  (read where it failed)
                operation()
        except Exception as error:
            raise self._failed(at, error) from error
        except BaseException:  # Ctrl-C: some stages are a step ahead of others
            self._lose()
            raise
        self._steps += 1
        return self._results()

    def timeline(self, arguments: Arguments) -> tuple[dict[int, jax.Array], list[Span]]:
        """Runs one step like :meth:`step`, and measures it: a thread per worker, which waits for each program.

        Returns:
          The results, and when each program ran, in the order in which they started.
        """
        self._feed(arguments)
        jax.block_until_ready([self._worker(k.stage).read(Register(k.stage, k.buffer)) for k in self._pipeline.keeps])
        self._ports.patient.set()
        begin = time.perf_counter()

        def follow(worker: Interpreter) -> list[Span]:
            try:
                return worker.timed_step(self._steps, begin)
            except BaseException:
                self._ports.patient.clear()  # wakes those that wait for a message of this worker
                raise

        try:
            with ThreadPoolExecutor(len(self._workers)) as pool:
                parts = [pool.submit(follow, worker) for worker in self._workers]
            errors = [e for e in (part.exception() for part in parts) if e is not None]
            if errors:
                self._lose()
                raise next((e for e in errors if not isinstance(e, _Interrupted)), errors[0])
        finally:
            self._ports.patient.clear()
        self._steps += 1
        spans = [span for part in parts for span in part.result()]
        return self._results(), sorted(spans, key=lambda span: span.start_s)

    def fetch_state(self) -> dict[int, jax.Array]:
        """The state, by index among the step's flat results. The next step may reuse its memory: copy it before.

        Raises:
          StageError: there is none: it was not loaded, or a step failed.
        """
        self._need_state()
        return {
            keep.result: self._worker(keep.stage).read(Register(keep.stage, keep.buffer))
            for keep in reversed(self._pipeline.keeps)
        }

    def close(self) -> None:
        """Forgets the state."""
        self._lose()

    def _worker(self, stage: int) -> Interpreter:
        return self._workers[self._pipeline.schedule.worker_of[stage]]

    def _feed(self, arguments: Arguments) -> None:
        self._need_state()
        # Copies: programs may reuse the memory, and the caller may refill his arrays for the next step.
        for feed, place in self._feeds:
            worker = self._worker(feed.stage)
            for register, part in cut(self._pipeline, feed, arguments[feed.argument]).items():
                worker.write(register, place(part))

    def _feeding(self, feed: Feed) -> Callable[[Any], jax.Array]:
        buffer = self._pipeline.stages[feed.stage].buffers[feed.buffer]
        return feeding(self._shardings[feed.stage, feed.buffer], buffer.shape, buffer.dtype)

    def _need_state(self) -> None:
        if self._pipeline.keeps and not self._loaded:
            raise StageError(
                f"{self._pipeline.name} has no state: it was not loaded, or an earlier step failed. Call load_state."
            )

    def _results(self) -> dict[int, jax.Array]:
        return {f.result: self._worker(f.stage).take(Register(f.stage, f.buffer)) for f in self._pipeline.fetches}

    def _failed(self, at: int, error: Exception) -> Exception:
        worker = self._order[at][0]
        within = sum(1 for w, _ in self._order[:at] if w == worker)
        failure = self._workers[worker].failure(self._steps, self._workers[worker].code[within], error)
        self._lose()
        return failure

    def _lose(self) -> None:
        self._loaded = False
        self._ports.clear()
        for worker in self._workers:
            worker.clear()


class _Interrupted(StageError):
    """A worker waited for a message of one that failed."""


class _Ports:
    """Programs are called, messages are put onto the receiver's devices."""

    def __init__(self, pipeline, programs, shardings, reused: frozenset[Register]):
        self._pipeline = pipeline
        self._programs = programs
        self._shardings = shardings
        self._arrived: dict[Register, deque[Any]] = defaultdict(deque)  # sent and not yet received
        self._reused = reused
        self.patient = threading.Event()  # set while every worker has a thread, so that a message may come later

    def run(self, run: Run) -> Callable[..., Sequence[jax.Array]]:
        program = self._programs[run.stage].get(run.program)
        if program is None:
            raise PlanError(f"stage {run.stage} has no compiled function for its program {run.program!r}")
        return program

    def send(self, send: Send) -> Callable[[Any], None]:
        source, target = send.source, send.target
        arrived = self._arrived[target]
        buffer = self._pipeline.stages[target.stage].buffers[target.buffer]
        here, there = (self._shardings[r.stage, r.buffer] for r in (source, target))
        put = handover(here, there, buffer.shape, buffer.dtype)

        def operation(value: Any) -> None:
            arrived.append(put(value))

        return operation

    def receive(self, receive: Recv) -> Callable[[], Any]:
        arrived = self._arrived[receive.target]

        def operation() -> Any:
            while not arrived:
                if not self.patient.is_set():
                    raise _Interrupted(f"worker {receive.worker} did not send {receive.source}")
                time.sleep(2e-5)
            return arrived.popleft()

        return operation

    def copy(self, copy: Copy) -> Callable[[jax.Array], jax.Array]:
        where = self._shardings[copy.target.stage, copy.target.buffer]
        alias = self._reused.isdisjoint((copy.source, copy.target))

        def operation(value: jax.Array) -> jax.Array:
            return jax.device_put(value, where, may_alias=alias)

        return operation

    def wait(self, arrays: Sequence[jax.Array]) -> None:
        jax.block_until_ready(arrays)

    def clear(self) -> None:
        """Forgets what was sent."""
        for arrived in self._arrived.values():
            arrived.clear()
