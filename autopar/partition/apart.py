"""Loops and conditions over values in parts, and where in them chunks meet.

A region op that is no chain holds parts of all chunks. Where it neither joins parts nor sums over them, every chunk can
have a loop (or condition) of its own, and so a stage of its own: an iteration over every layer's gradient, say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping

from autopar.ir import Op, PortGroup, region_ports
from autopar.partition.timing import SAME
from autopar.sharding.strategy import Action, actions

PICK = "pick"
"""The action of a ``slice`` along the cut dim: it reads only the parts that it overlaps. Its result is the same."""


def stays_apart(op: Op, places: Mapping[int, int], chosen: Mapping[int, str], chains: Container[int]) -> bool:
    """Whether a region op makes parts, each from parts of the same chunk alone.

    Args:
      op: a loop or condition, no chain.
      places: value id -> placement over depth, for values of its regions too.
      chosen: op id -> action over depth; ops that are not there run whole.
      chains: op ids of the scans that are cut.
    """
    inner = [o for region in op.regions for o in region.walk()]
    if all(places[v] == SAME for v in op.results) or any(o.id in chains for o in inner):
        return False
    wanted = [
        (v, shift(_held(port, places), stacked))
        for o in (op, *(o for o in inner if o.loop is not None))
        for port in region_ports(o)
        for v, stacked in port.reads
        if o is not op or v not in op.operands
    ]
    for o in inner:
        if o.loop is not None:
            continue
        action = _action(o, chosen)
        if action is None and o.id in chosen:
            return False  # picks
        if action is not None and min(action.results) < 0:
            return False  # sums
        operands = (SAME,) * len(o.operands) if action is None else action.operands
        wanted += zip(o.operands, operands, strict=True)
    return all(places[v] in (SAME, place) for v, place in wanted)


def accumulators(op: Op) -> frozenset[int]:
    """Positions of a scan's carries that every trip only adds to: gradients of its constants, for one.

    Chunks may each begin such a sum anew, and add it up once they are all done.
    """
    (body,) = op.regions
    loop = op.loop
    assert loop is not None
    uses = Counter(v for o in body.ops for v in o.operands) + Counter(body.outputs)
    adds = {v: o for o in body.ops if o.primitive in ("add", "add_any") for v in o.operands}
    found = set()
    for k in range(loop.carry):
        v = body.inputs[loop.consts + k]
        while uses[v] == 1 and v in adds:
            (v,) = adds[v].results
        if v == body.outputs[k] and uses[v] == 1 and v != body.inputs[loop.consts + k]:
            found.add(k)
    return frozenset(found)


def beside_carry(op: Op) -> frozenset[int]:
    """Positions of a scan's results that depend on nothing that it carries: weights transposed for the backward pass.

    A scan of their own makes them, for they wait for no chunk before, nor for the data.
    """
    (body,) = op.regions
    loop = op.loop
    assert loop is not None
    carried = set(body.inputs[loop.consts : loop.consts + loop.carry])
    for o in body.ops:
        if not carried.isdisjoint(o.operands):
            carried.update(o.results)
    if not loop.carry:
        return frozenset()
    return frozenset(k for k in range(loop.carry, len(op.results)) if body.outputs[k] not in carried)


def outer_reads(op: Op, places: Mapping[int, int]) -> list[tuple[int, int]]:
    """What a region op that is no chain reads from outside, and in which placement."""
    return [
        (v, shift(_held(port, places), stacked))
        for port in region_ports(op)
        for v, stacked in port.reads
        if v in op.operands
    ]


def shift(place: int, by: int) -> int:
    """A placement where there are ``by`` more leading dims."""
    return place + by if place >= 0 else place


def _action(op: Op, chosen: Mapping[int, str]) -> Action | None:
    name = chosen.get(op.id)
    return next((a for a in actions(op.rule) if a.name == name), None)


def _held(port: PortGroup, places: Mapping[int, int]) -> int:
    """The placement of what a port hands on."""
    if not port.makes:
        return SAME
    v, stacked = port.makes[0]
    return shift(places[v], -stacked)
