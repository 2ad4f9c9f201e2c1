"""Direct connections between workers: framed bytes over a socket, one per pair.

A frame is a header of 16 bytes (tag, length) and its bytes. Nobody sends back; order within a connection is kept.
A small message whose bytes are ready is written at once by the thread that sends it; anything else goes to the
connection's own thread, which waits for the array and writes it, so that sending never waits. The receiver reads in
the thread that needs the message, straight into the memory that the array will use.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence

import numpy as np

from autopar.errors import StageError

Parts = Sequence[np.ndarray]

_HEADER = struct.Struct("<QQ")
_SMALL_BYTES = 1 << 16
_ALIGNMENT = 64  # of memory that jax can use as it is


class LinkError(StageError):
    """The other end of a connection is gone."""


class Link:
    """One end of a connection to another worker.

    Args:
      channel: a connected socket, as :mod:`~.doors` makes them.
      name: the other end, for messages.
    """

    def __init__(self, channel: socket.socket, name: str):
        channel.settimeout(None)
        if channel.family != socket.AF_UNIX:
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            channel.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self._socket = channel
        self._name = name
        self._arrived: dict[int, np.ndarray] = {}
        self._read = bytearray(_SMALL_BYTES)
        self._start = self._stop = 0  # what was read and is not yet taken
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], Parts]] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._writer = threading.Thread(target=self._write_jobs, name=f"send to {name}", daemon=True)
        self._writer.start()

    def send(self, tag: int, parts: Parts) -> None:
        """Sends arrays that are ready. A small one is written at once where nothing is before it."""
        data = parts[0].tobytes() if len(parts) == 1 and parts[0].nbytes <= _SMALL_BYTES else None
        if data is None or self._waiting:
            self.send_later(tag, lambda: parts)
            return
        message = _HEADER.pack(tag, len(data)) + data
        try:
            done = self._socket.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            done = 0
        except OSError as error:
            raise self._gone() from error
        if done < len(message):
            rest = np.frombuffer(message, np.uint8, offset=done)
            self._enqueue((None, lambda: (rest,)))

    def send_later(self, tag: int, parts: Callable[[], Parts]) -> None:
        """Sends arrays that may not be ready: ``parts`` waits for them, in the connection's thread."""
        self._enqueue((tag, parts))

    def receive(self, tag: int) -> np.ndarray:
        """Waits for a message.

        Returns:
          Its bytes, in memory that nobody else uses.

        Raises:
          LinkError: the other end is gone.
        """
        while tag not in self._arrived:
            found, message = self._frame()
            self._arrived[found] = message
        return self._arrived.pop(tag)

    def has_news(self) -> bool:
        """Whether something was read and not yet taken, or the connection ended here."""
        return self._stop > self._start or self.fileno() < 0

    def fileno(self) -> int:
        """The socket, to poll; negative once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the connection, which wakes both ends."""
        self._jobs.put(None)
        with contextlib.suppress(OSError):  # the other end may be faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _enqueue(self, job) -> None:
        if self._error is not None:
            raise self._gone()
        with self._lock:
            self._waiting += 1
        self._jobs.put(job)

    def _write_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            tag, make = job
            try:
                parts = [_bytes(part) for part in make()]
                if tag is not None:
                    self._socket.sendall(_HEADER.pack(tag, sum(len(part) for part in parts)))
                for part in parts:
                    self._socket.sendall(part)
            except Exception as error:  # of the program that makes the array, or of the connection
                self._error = error
                self.close()  # tells both ends
                return
            with self._lock:
                self._waiting -= 1

    def _frame(self) -> tuple[int, np.ndarray]:
        while self._stop - self._start < _HEADER.size:
            self._fill()
        tag, size = _HEADER.unpack_from(self._read, self._start)
        self._start += _HEADER.size
        if size <= self._stop - self._start:
            message = np.frombuffer(self._read[self._start : self._start + size], np.uint8)  # a slice is a copy
            self._start += size
            return tag, message
        message = aligned(size)
        into = message.data
        have = min(size, self._stop - self._start)
        into[:have] = memoryview(self._read)[self._start : self._start + have]
        self._start += have
        while have < size:
            have += self._receive(into[have:])
        return tag, message

    def _fill(self) -> None:
        if self._start == self._stop:
            self._start = self._stop = 0
        elif len(self._read) - self._stop < _HEADER.size:
            rest = self._read[self._start : self._stop]
            self._read[: len(rest)] = rest
            self._start, self._stop = 0, len(rest)
        self._stop += self._receive(memoryview(self._read)[self._stop :])

    def _receive(self, into: memoryview) -> int:
        try:
            count = self._socket.recv_into(into)
        except OSError as error:
            raise self._gone() from error
        if count == 0:
            raise self._gone()
        return count

    def _gone(self) -> Exception:
        if self._error is not None and not isinstance(self._error, OSError):
            return self._error  # the cause is here, not at the other end
        return LinkError(f"the connection to {self._name} ended")


def aligned(size: int) -> np.ndarray:
    """Fresh bytes, aligned so that jax can use them without a copy."""
    block = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -block.ctypes.data % _ALIGNMENT
    return block[skip : skip + size]


def _bytes(part: np.ndarray) -> memoryview:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
