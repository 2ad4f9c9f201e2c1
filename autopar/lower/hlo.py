"""What XLA made of a program: the collectives in its compiled HLO, and its memory.

The text of ``compiled.as_text()`` is read instruction by instruction. Traps it is written for:

- XLA combines collectives into one over a tuple, whose text holds comments (``/*index=5*/``): each element
  counts as a collective of its own. An all-to-all over a tuple is one all-to-all cut into its pieces.
- Asynchronous collectives are a ``-start`` and a ``-done``, or an ``async-start`` that calls a computation: the
  start counts.
- A body of a loop runs ``known_trip_count`` times. Where XLA does not know the count, and in the branches of a
  conditional, a collective counts once and is marked ``exact=False``.
- The CPU backend does bfloat16 collectives in float32: compare elements, or bytes with the ``dtype`` in view.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import networkx as nx

from autopar.errors import InternalError

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True, slots=True)
class HloCollective:
    """One collective of a compiled program (one element of a combined one).

    Attributes:
      kind: as HLO spells it, which is the value of :class:`autopar.sharding.layout.Collective`.
      dtype: as HLO spells it: ``f32``, ``bf16``, ``pred``.
      elements: of the larger of operand and result, on one device.
      nbytes: likewise, in bytes, for one run of the collective.
      group_size: number of devices that take part together; 0 if the text does not say it in a known way.
      times: how often one step runs it.
      exact: whether ``times`` is known: no loop of unknown length and no conditional is around it.
      op_name: jax's name stack of the operation that it came from.
    """

    kind: str
    dtype: str
    elements: int
    nbytes: int
    group_size: int
    times: int = 1
    exact: bool = True
    op_name: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """XLA's memory analysis of one program, in bytes on one device.

    Attributes:
      peak_bytes: arguments + outputs - aliased + temporaries. (XLA's own peak leaves temporaries out on CPU.)
      temp_bytes: buffers that live only inside the program. Only meaningful with donation on.
      argument_bytes: inputs.
      output_bytes: results, those in donated buffers included.
      alias_bytes: the part of the results that lies in donated inputs.
    """

    peak_bytes: int
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int


def memory(compiled: jax.stages.Compiled) -> Memory:
    """XLA's memory figures of a compiled program.

    Raises:
      InternalError: the backend has no memory analysis.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise InternalError("this jax backend gives no memory analysis; a prediction cannot be compared on it")
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
    return Memory(arguments + outputs - aliased + temporaries, temporaries, arguments, outputs, aliased)


def hlo_collectives(text: str) -> tuple[HloCollective, ...]:
    """Every collective that one run of a compiled program performs, in program order.

    Args:
      text: ``compiled.as_text()``.

    Raises:
      InternalError: the text has no entry computation.

    >>> hlo_collectives('''HloModule m, num_partitions=4
    ... ENTRY %main (p: f32[8]) -> f32[8] {
    ...   %p = f32[8]{0} parameter(0)
    ...   ROOT %r = f32[8]{0} all-reduce(%p), replica_groups=[2,2]<=[4], to_apply=%add
    ... }''')[0]
    HloCollective(kind='all-reduce', dtype='f32', elements=8, nbytes=32, group_size=2, times=1, exact=True, op_name='')
    """
    text = _COMMENT.sub("", text)
    computations, entry = _computations(text)
    if entry is None:
        raise InternalError("the HLO text has no ENTRY computation; pass compiled.as_text()")
    return tuple(_walk(computations, entry, _devices(text), times=1, exact=True))


_COMMENT = re.compile(r"/\*.*?\*/")
_MODULE = re.compile(r"^HloModule.*$", re.MULTILINE)
_HEADER = re.compile(r"(ENTRY\s+)?%?([^\s(%=]+)\s.*\{\s*$")
_NAME = re.compile(r"\s*(?:ROOT\s+)?%?([^\s=%]+) = ")
_LEAF = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")
_OPERAND = re.compile(r"%?([^\s%]+)\s*$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"?([0-9]+)')
_CALLS = re.compile(r"[ ,](?:to_apply|calls|true_computation|false_computation)=%?([^\s,{}%]+)")
_BODY = re.compile(r"[ ,](?:body|condition)=%?([^\s,{}%]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LISTED_GROUPS = re.compile(r"replica_groups=\{(\{[0-9,{} ]*\})?\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([0-9]+),([0-9]+)\]<=")
_MESH_GROUPS = re.compile(r"replica_groups=[^\s\[{]*\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\([0-9]+\)([0-9]+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[0-9]+,[0-9]+\},?\s*)+)\}")
_COLLECTIVE = re.compile(f"({'|'.join(KINDS)})(-start)?")


@dataclass(frozen=True, slots=True)
class _Array:
    dtype: str
    elements: int

    @property
    def nbytes(self) -> int:
        bits = re.search(r"[0-9]+", self.dtype)
        return math.ceil(self.elements * int(bits[0]) / 8) if bits else self.elements * (self.dtype == "pred")


@dataclass(frozen=True, slots=True)
class _Instruction:
    name: str
    shape: tuple[_Array, ...]  # the leaves of its type
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    op_name: str


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    found: dict[str, list[_Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}", "\t") and (header := _HEADER.match(line)):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (name := _NAME.match(line)):
            current.append(_instruction(name[1], line[name.end() :]))
    return found, entry


def _instruction(name: str, rest: str) -> _Instruction:
    """Split ``f32[4]{0} all-reduce(%a, %b), attributes``; a tuple type and the operands are balanced brackets."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    opening = rest.find("(", end)
    closing = _closing(rest, opening)
    op_name = _OP_NAME.search(rest, closing)
    return _Instruction(
        name,
        tuple(_arrays(rest[:end])),
        rest[end:opening].strip(),
        tuple(_operands(rest[opening + 1 : closing - 1])),
        _OP_NAME.sub("", rest[closing:]),
        op_name[1] if op_name else "",
    )


def _closing(text: str, opening: int) -> int:
    """Index after the bracket that closes the one at ``opening``."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _operands(text: str) -> Iterator[str]:
    """Names of ``%a, f32[2,3]{1,0} %b``: commas inside brackets do not separate."""
    depth, begin = 0, 0
    for i, letter in enumerate(text + ","):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            if name := _OPERAND.search(text[begin:i]):
                yield name[1]
            begin = i + 1


def _arrays(shape: str) -> Iterator[_Array]:
    for dtype, dims in _LEAF.findall(shape):
        yield _Array(dtype, math.prod(int(n.removeprefix("<=")) for n in dims.split(",") if n))


def _walk(
    computations: dict[str, list[_Instruction]], name: str, devices: int, times: int, exact: bool
) -> Iterator[HloCollective]:
    """Collectives of a computation and of those that it calls."""
    shapes = {i.name: i.shape for i in computations.get(name, ())}
    for instruction in computations.get(name, ()):
        opcode, attributes = instruction.opcode, instruction.attributes
        if match := _COLLECTIVE.fullmatch(opcode):
            for found in _collectives(match[1], bool(match[2]), instruction, shapes, devices):
                yield replace(found, times=times, exact=exact)
        elif opcode == "while":
            trips = _TRIPS.search(attributes)
            for called in _BODY.findall(attributes):
                rounds = int(trips[1]) if trips else 1
                yield from _walk(computations, called, devices, times * rounds, exact and trips is not None)
        elif opcode == "conditional":
            branches = _BRANCHES.search(attributes)
            called = re.findall(r"[^\s,%]+", branches[1]) if branches else _CALLS.findall(attributes)
            for branch in called:
                yield from _walk(computations, branch, devices, times, exact=False)
        elif opcode not in ("async-update", "async-done"):
            for called in _CALLS.findall(attributes):
                yield from _walk(computations, called, devices, times, exact)


def _collectives(
    kind: str, start: bool, instruction: _Instruction, shapes: dict[str, tuple[_Array, ...]], devices: int
) -> Iterator[HloCollective]:
    """One record for each operand; a start's type holds operands and results, one after the other."""
    count = len(instruction.operands)
    results = instruction.shape
    larger = []
    for i, operand in enumerate(instruction.operands):
        at = (i, i + count) if start else (i,)
        sides = [*shapes.get(operand, ()), *(results[j] for j in at if j < len(results))]
        larger.append(max(sides, key=lambda array: array.elements))
    size = _group_size(instruction.attributes, devices)
    if kind == "all-to-all" and count > 1:  # cut into pieces, one for each receiver
        larger = [_Array(larger[0].dtype, sum(piece.elements for piece in larger))]
    for array in larger[: 1 if kind == "ragged-all-to-all" else None]:  # its other operands are offsets
        yield HloCollective(kind, array.dtype, array.elements, array.nbytes, size, op_name=instruction.op_name)


def _devices(text: str) -> int:
    """Devices of the whole program, from the module's header."""
    header = _MODULE.search(text)
    found = (
        re.search(rf"\b{word}=([0-9]+)", header[0] if header else "") for word in ("replica_count", "num_partitions")
    )
    return math.prod(int(match[1]) for match in found if match)


def _group_size(attributes: str, devices: int) -> int:
    if iota := _IOTA_GROUPS.search(attributes):
        return int(iota[2])
    if listed := _LISTED_GROUPS.search(attributes):
        groups = re.findall(r"\{([0-9, ]+)\}", listed[0])
        return max((len(group.split(",")) for group in groups), default=devices)
    if mesh := _MESH_GROUPS.search(attributes):  # axes of a mesh, or parts of them: 'x', 'y':(2)4
        sizes = dict(re.findall(r"'([^']+)'=([0-9]+)", mesh[1]))
        return math.prod(int(part or sizes.get(axis, 0)) for axis, part in _MESH_AXIS.findall(mesh[2]))
    if pairs := _PAIRS.search(attributes):
        return _ring_size([(int(a), int(b)) for a, b in re.findall(r"([0-9]+),([0-9]+)", pairs[1])])
    return 0


def _ring_size(pairs: Sequence[tuple[int, int]]) -> int:
    """Devices of the largest set that a permute connects."""
    return max(map(len, nx.connected_components(nx.Graph(pairs))))


def total_bytes(collectives: Iterable[HloCollective]) -> dict[str, int]:
    """Bytes by kind of one run of the program: the sum of ``times * nbytes``."""
    totals: dict[str, int] = {}
    for found in collectives:
        totals[found.kind] = totals.get(found.kind, 0) + found.times * found.nbytes
    return totals
