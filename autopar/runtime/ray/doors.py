"""Where workers meet: who listens, who calls, and how both know that the other belongs to the run.

A worker listens on TCP, and where the system has them on a socket of the machine, which costs half as much per message
and moves large ones several times as fast. A caller tries that one first; elsewhere nothing has its name.

Both ends prove that they know the run's key (HMAC of a fresh nonce), so that nothing else on the network or on the
machine can talk to a worker.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import select
import socket
import sys
import time
from dataclasses import dataclass

_BACKLOG = 256
_NONCE_BYTES = 32
_CALLED_S = 1.0  # for a caller that hangs up between being noticed and being answered


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker listens.

    Attributes:
      host, port: on the network.
      name: on its machine; None where the system has no such sockets.
    """

    host: str
    port: int
    name: bytes | None


class Door:
    """Listens on a free port of ``host``, and on its machine, until it is closed."""

    def __init__(self, host: str):
        self._servers = [socket.create_server((host, 0), backlog=_BACKLOG)]
        name = None
        if sys.platform == "linux":  # only there a name needs no file, which would have to be removed
            name = b"\0autopar-" + secrets.token_hex(16).encode()
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(name)
            server.listen(_BACKLOG)
            self._servers.append(server)
        for server in self._servers:
            server.settimeout(_CALLED_S)
        self.address = Address(host, self._servers[0].getsockname()[1], name)

    def accept(self, key: bytes, timeout_s: float) -> tuple[int, socket.socket] | None:
        """Waits for another worker.

        Returns:
          Its number and the connection; None if something without the key called.

        Raises:
          TimeoutError: nobody called in time.
        """
        poll = select.poll()
        for server in self._servers:
            poll.register(server, select.POLLIN)
        called = {descriptor for descriptor, _ in poll.poll(timeout_s * 1e3)}
        if not called:
            raise TimeoutError(f"nobody called within {timeout_s:g} s")
        channel, _ = next(server for server in self._servers if server.fileno() in called).accept()
        channel.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            theirs = _exactly(channel, _NONCE_BYTES + 8)
            mine = os.urandom(_NONCE_BYTES)
            channel.sendall(mine + _proof(key, b"accept", theirs, mine))
            if hmac.compare_digest(_exactly(channel, 32), _proof(key, b"connect", theirs, mine)):
                return int.from_bytes(theirs[_NONCE_BYTES:], "little"), channel
        channel.close()
        return None

    def close(self) -> None:
        """Listens no more."""
        for server in self._servers:
            server.close()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(address: Address, me: int, key: bytes, timeout_s: float) -> socket.socket:
    """Connects to another worker as number ``me``.

    Raises:
      OSError: it cannot be reached, or does not know the key.
    """
    until = time.monotonic() + timeout_s
    channel = _on_machine(address, timeout_s) or socket.create_connection((address.host, address.port), timeout_s)
    channel.settimeout(max(until - time.monotonic(), 1e-3))
    try:
        mine = os.urandom(_NONCE_BYTES) + me.to_bytes(8, "little")
        channel.sendall(mine)
        theirs, proof = _exactly(channel, _NONCE_BYTES), _exactly(channel, 32)
        if not hmac.compare_digest(proof, _proof(key, b"accept", mine, theirs)):
            raise ConnectionRefusedError(f"{address.host}:{address.port} does not know the key of this run")
        channel.sendall(_proof(key, b"connect", mine, theirs))
    except OSError:
        channel.close()
        raise
    return channel


def free_port(host: str) -> int:
    """A port of ``host`` that is free now."""
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]


def _on_machine(address: Address, timeout_s: float) -> socket.socket | None:
    if address.name is None or sys.platform != "linux":
        return None
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(timeout_s)  # with too many callers before it, it waits
    try:
        channel.connect(address.name)
    except OSError:  # it is on another machine, or in another container
        channel.close()
        return None
    return channel


def _proof(key: bytes, role: bytes, caller: bytes, server: bytes) -> bytes:
    return hmac.digest(key, role + caller + server, "sha256")


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the other end closed the connection")
        data += more
    return data
