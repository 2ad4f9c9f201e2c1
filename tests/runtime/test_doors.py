"""Who knows the key is let in, over the machine or the network; nobody else is."""

import socket
import threading
import time
from dataclasses import replace

import pytest

from autopar.runtime.ray import doors
from autopar.runtime.ray.doors import Door

KEY = b"k" * 32


def on_network(address):
    return replace(address, name=None)


def elsewhere(address):
    return replace(address, name=b"\0autopar-on-another-machine")


@pytest.mark.parametrize("seen", [lambda address: address, on_network, elsewhere])
def test_callers_who_know_the_key_come_in(seen):
    with Door("127.0.0.1") as door:
        found = []
        callers = [
            threading.Thread(target=lambda n=n: found.append(doors.connect(seen(door.address), n, KEY, 5)))
            for n in range(3)
        ]
        for caller in callers:
            caller.start()
        accepted = dict(door.accept(KEY, 5) for _ in callers)
        for caller in callers:
            caller.join()
        assert sorted(accepted) == [0, 1, 2]
        for channel in (*accepted.values(), *found):
            channel.close()


@pytest.mark.parametrize("seen", [lambda address: address, on_network])
def test_strangers_are_not_let_in(seen):
    with Door("127.0.0.1") as door:
        refused = []

        def call():
            try:
                doors.connect(seen(door.address), 1, b"guess" * 8, 5)
            except OSError as error:
                refused.append(error)
            with socket.create_connection((door.address.host, door.address.port)) as channel:
                channel.sendall(b"GET / HTTP/1.1\r\n\r\n")

        caller = threading.Thread(target=call)
        caller.start()
        assert door.accept(KEY, 5) is None
        assert door.accept(KEY, 1) is None
        caller.join()
        assert "does not know the key" in str(refused[0])
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            door.accept(KEY, 0.1)
        assert time.monotonic() - start < 2


def test_a_closed_door_refuses():
    with Door("127.0.0.1") as door:
        pass
    with pytest.raises(OSError):
        doors.connect(door.address, 1, KEY, 5)
