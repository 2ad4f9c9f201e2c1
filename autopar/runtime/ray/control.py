"""The driver's own connections to the actors: a step is one request and one answer on each.

A call through Ray costs a millisecond of CPU, a request here some tens of microseconds; with a call per worker and
step that is most of what a step of small tasks would cost. Where an actor cannot be reached, steps go through Ray.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import select
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from autopar.runtime.ray import doors
from autopar.runtime.ray.links import Link, LinkError
from autopar.runtime.ray.messages import Done, Hello

_CONNECT_S = 5.0


class Control:
    """Asks all actors, and gathers their answers in the order in which they come.

    Args:
      ends: a connection to each actor.
    """

    def __init__(self, ends: Sequence[Link]):
        self._ends = tuple(ends)
        self._asked = 0

    def ask(self, requests: Iterable[bytes]) -> int:
        """Sends each actor its request; the number to ask for the answers with."""
        for end, request in zip(self._ends, requests, strict=True):
            with contextlib.suppress(LinkError):  # its answer will be that it is gone
                end.send(self._asked, [np.frombuffer(request, np.uint8)])
        self._asked += 1
        return self._asked - 1

    def answers(self, number: int, cause_s: float) -> dict[int, Any]:
        """Waits for every actor's answer to request ``number``; requests are to be waited for in order.

        Args:
          number: what ``ask`` returned.
          cause_s: how long to wait for the others once one has failed.

        Returns:
          Actor -> Done, Failure, or LinkError where it is gone.
        """
        found: dict[int, Any] = {}
        waiting = dict(enumerate(self._ends))
        until = math.inf
        while waiting and time.monotonic() < until:
            for n in _ready(waiting, 0.5):
                try:
                    found[n] = pickle.loads(waiting.pop(n).receive(number).data)
                except LinkError as error:
                    found[n] = error
                if until == math.inf and not isinstance(found[n], Done):
                    until = time.monotonic() + cause_s
        return found

    def close(self) -> None:
        """Ends the connections."""
        for end in self._ends:
            end.close()


def reach(hellos: Sequence[Hello], key: bytes) -> Control | None:
    """Connects to all actors, which must be attending; None if that fails for one of them."""
    ends: list[Link] = []
    try:
        for number, hello in enumerate(hellos):
            channel = doors.connect(hello.address, len(hellos), key, _CONNECT_S)
            ends.append(Link(channel, f"actor {number}"))
    except OSError:
        for end in ends:
            end.close()
        return None
    return Control(ends)


def _ready(ends: Mapping[int, Link], timeout_s: float) -> list[int]:
    """Those that have something to read, or have ended."""
    already = [n for n, end in ends.items() if end.has_news()]
    if already:
        return already
    poll = select.poll()
    numbers = {end.fileno(): n for n, end in ends.items()}
    for descriptor in numbers:
        poll.register(descriptor, select.POLLIN)
    return [numbers[descriptor] for descriptor, _ in poll.poll(timeout_s * 1e3)]
