"""Messages through Ray's object store, for workers that cannot reach each other directly.

The sender puts the bytes into its host's store and tells the receiver by an actor call; Ray moves them. Slower than a
connection (about 1 ms per message), and it works wherever Ray does. Same methods as :class:`~.links.Link`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray

from autopar.runtime.ray.links import LinkError, Parts


class Mail:
    """The way to and from one other worker.

    Args:
      deliver: the other worker's remote method that takes (sender, tag, references).
      me: this worker's number.
      name: the other worker, for messages.
    """

    def __init__(self, deliver: Any, me: int, name: str):
        self._deliver = deliver
        self._me = me
        self._name = name
        self._arrived: dict[int, Any] = {}
        self._news = threading.Condition()
        self._open = True
        self._error: Exception | None = None
        self._writer = ThreadPoolExecutor(1, f"send to {name}")

    def send(self, tag: int, parts: Parts) -> None:
        """Sends arrays that are ready."""
        self.send_later(tag, lambda: parts)

    def send_later(self, tag: int, parts: Callable[[], Parts]) -> None:
        """Sends arrays that may not be ready: ``parts`` waits for them, in a thread of its own."""
        if self._error is not None:
            raise self._error
        self._writer.submit(self._put, tag, parts)

    def receive(self, tag: int) -> np.ndarray:
        """Waits for a message.

        Returns:
          Its bytes, in memory that nobody else uses.

        Raises:
          LinkError: the other worker is gone.
        """
        with self._news:
            self._news.wait_for(lambda: tag in self._arrived or not self._open)
            if self._error is not None:
                raise self._error
            if tag not in self._arrived:
                raise LinkError(f"{self._name} is gone")
            (reference,) = self._arrived.pop(tag)
        return np.array(ray.get(reference))  # the store's memory is read-only and shared

    def arrive(self, tag: int, references: list[Any]) -> None:
        """What the other worker's call brings: a list, as Ray would fetch a bare reference at once."""
        with self._news:
            self._arrived[tag] = references
            self._news.notify_all()

    def close(self) -> None:
        """Wakes who waits."""
        with self._news:
            self._open = False
            self._news.notify_all()
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _put(self, tag: int, make: Callable[[], Parts]) -> None:
        try:
            parts = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in make()]
            message = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._deliver.remote(self._me, tag, [ray.put(message)])
        except Exception as error:
            self._error = error
            self.close()
