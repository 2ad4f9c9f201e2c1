"""Connections keep every byte, never wait to send, and say when the other end is gone."""

import socket
import sys
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from autopar.runtime.ray import doors
from autopar.runtime.ray.doors import Door
from autopar.runtime.ray.links import Link, LinkError

KEY = b"k" * 32


@pytest.fixture(params=["machine", "network"])
def ends(request):
    found = []
    with Door("127.0.0.1") as door:
        address = door.address if request.param == "machine" else replace(door.address, name=None)
        caller = threading.Thread(target=lambda: found.append(doors.connect(address, 7, KEY, 5)))
        caller.start()
        number, accepted = door.accept(KEY, 5)
        caller.join()
    assert number == 7
    family = socket.AF_UNIX if request.param == "machine" and sys.platform == "linux" else socket.AF_INET
    assert accepted.family == found[0].family == family
    pair = Link(accepted, "actor 7"), Link(found[0], "actor 0")
    yield pair
    for end in pair:
        end.close()


def arrays():
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 16_000, 65_536, 65_537, 300_000, 9_000_000):
        yield rng.integers(0, 255, size).astype(np.uint8)
    yield rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16)
    yield rng.normal(size=(300, 500)).T  # not contiguous
    yield np.array(3.5)
    yield np.array([True, False])


def test_everything_arrives_in_both_directions_at_once(ends):
    sent = list(arrays()) * 3
    for end in ends:
        for tag, array in enumerate(sent):
            if tag % 3:
                end.send(tag, [array])
            else:
                end.send_later(tag, lambda array=array: [array])
    for end in reversed(ends):
        for tag in (*range(1, len(sent), 2), *range(0, len(sent), 2)):  # not in the order in which they come
            message = end.receive(tag)
            np.testing.assert_array_equal(message.view(sent[tag].dtype).reshape(sent[tag].shape), sent[tag])
            message[:] = 0  # it is the receiver's own


def test_pieces_of_a_message_follow_each_other(ends):
    parts = [np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)]
    ends[0].send(1, parts)
    np.testing.assert_array_equal(ends[1].receive(1).view(np.int32), np.concatenate(parts))


def test_large_messages_come_aligned(ends):
    for tag in range(5):
        ends[0].send(tag, [np.zeros(200_001 + tag, np.uint8)])
        assert ends[1].receive(tag).ctypes.data % 64 == 0


def test_who_waits_is_woken_when_the_other_end_goes(ends):
    threading.Timer(0.2, ends[0].close).start()
    with pytest.raises(LinkError, match="connection to actor 0 ended"):
        ends[1].receive(1)


def test_an_array_that_fails_is_the_senders_error(ends):
    def fails():
        raise ValueError("out of luck")

    ends[0].send_later(1, fails)
    with pytest.raises(LinkError):
        ends[1].receive(1)
    with pytest.raises(ValueError, match="out of luck"):
        ends[0].receive(1)
    with pytest.raises(ValueError, match="out of luck"):
        ends[0].send(2, [np.zeros(100_000)])
