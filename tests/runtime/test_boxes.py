"""Every receiving host gets every element of its boxes exactly once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.runtime import Buffer
from autopar.runtime.boxes import boxes, routes, sizes, slices

SHAPE = (8, 4)


@st.composite
def laid_out(draw):
    """A buffer's boxes on a mesh of two axes, and a number of hosts."""
    mesh = (("a", draw(st.sampled_from([1, 2, 4]))), ("b", draw(st.sampled_from([1, 2]))))
    spec = draw(
        st.sampled_from([((), ()), (("a",), ()), ((), ("a",)), (("b", "a"), ()), (("a",), ("b",)), (("b",), ())])
    )
    found = boxes(Buffer("x", SHAPE, "float32", spec, "step"), mesh)
    return found, draw(st.sampled_from([h for h in (1, 2, 4) if len(found) % h == 0]))


@settings(max_examples=200, deadline=None)
@given(laid_out(), laid_out())
def test_routes_move_every_element_once(source, target):
    (sent, senders), (wanted, receivers) = source, target
    whole = np.arange(32).reshape(SHAPE)
    plan = routes(sent, senders, wanted, receivers)
    for host in range(receivers):
        mine = set(wanted[host * len(wanted) // receivers : (host + 1) * len(wanted) // receivers])
        found = {box: np.full(sizes(box), -1) for box in mine}
        for (sender, receiver), pieces in plan.items():
            for piece in pieces if receiver == host else ():
                assert piece.device // (len(sent) // senders) == sender
                assert (found[piece.box][slices(piece.placed)] == -1).all()
                held = whole[slices(sent[piece.device])]
                found[piece.box][slices(piece.placed)] = held[slices(piece.taken)]
        for box, values in found.items():
            np.testing.assert_array_equal(values, whole[slices(box)])


def test_senders_share_the_work():
    whole = boxes(Buffer("x", SHAPE, "float32", ((), ()), "step"), (("a", 4),))
    plan = routes(whole, 2, whole, 2)
    assert {sender for sender, _ in plan} == {0, 1}
