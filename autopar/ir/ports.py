"""How values enter, leave and go round a region.

A port is a place where one array is handed on unchanged, so all its ends keep one layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.ir.graph import Op


@dataclass(frozen=True, slots=True)
class PortGroup:
    """Values that one port reads and makes, with the number of leading stacked dims of each (0 or 1)."""

    reads: tuple[tuple[int, int], ...]
    makes: tuple[tuple[int, int], ...]
    partial: bool


def region_ports(op: Op) -> list[PortGroup]:
    """The ports of a region op (see :class:`autopar.ir.Loop` for the conventions).

    A scan's carry is one port: read from outside and from the body's end, made inside and outside.
    """
    loop = op.loop
    assert loop is not None, f"{op.primitive} has no regions"
    groups = []
    if loop.kind == "scan":
        (body,) = op.regions
        for i, v in enumerate(op.operands):
            inside = body.inputs[i]
            if i < loop.consts:
                groups.append(PortGroup(((v, 0),), ((inside, 0),), False))
            elif i < loop.consts + loop.carry:
                k = i - loop.consts
                groups.append(PortGroup(((v, 0), (body.outputs[k], 0)), ((inside, 0), (op.results[k], 0)), True))
            else:
                groups.append(PortGroup(((v, 1),), ((inside, 0),), False))
        for k in range(loop.carry, len(op.results)):
            groups.append(PortGroup(((body.outputs[k], 0),), ((op.results[k], 1),), True))
    elif loop.kind == "while":
        cond, body = op.regions
        for i, v in enumerate(op.operands[: loop.cond_consts]):
            groups.append(PortGroup(((v, 0),), ((cond.inputs[i], 0),), False))
        for i, v in enumerate(op.operands[loop.cond_consts : loop.cond_consts + loop.consts]):
            groups.append(PortGroup(((v, 0),), ((body.inputs[i], 0),), False))
        for k, v in enumerate(op.operands[loop.cond_consts + loop.consts :]):
            reads = ((v, 0), (body.outputs[k], 0))
            makes = ((cond.inputs[loop.cond_consts + k], 0), (body.inputs[loop.consts + k], 0), (op.results[k], 0))
            groups.append(PortGroup(reads, makes, False))
        groups.append(PortGroup(((cond.outputs[0], 0),), (), False))
    else:
        groups.append(PortGroup(((op.operands[0], 0),), (), False))
        for i, v in enumerate(op.operands[1:]):
            groups.append(PortGroup(((v, 0),), tuple((r.inputs[i], 0) for r in op.regions), False))
        for k, v in enumerate(op.results):
            groups.append(PortGroup(tuple((r.outputs[k], 0) for r in op.regions), ((v, 0),), False))
    return groups
