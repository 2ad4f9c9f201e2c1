"""Which arrays a compiler stores: the kernels it makes of a step.

Only what passes from kernel to kernel needs a buffer. The rules are those of XLA's instruction fusion, which works
backwards from the readers:

- Matrix products, convolutions, sorts, scatters, random bits and collectives are kernels of their own: they read
  and write memory. Every other op can be computed inside a kernel that reads its result.
- A result that is read only inside kernels is computed again in each of them, if that is cheap; then its operands
  are held, not it. A dropout mask is an example: held for the backward pass are the random bits.
- It is stored if some reader is no such kernel, or if it is a reduction, or costly (``exp``, ``tanh``, a division)
  and read by several kernels. If it is cheap and depends on one array it is computed again nevertheless in the
  kernels that can.
- A reduction over long rows or columns is a library's kernel on CPU: it multiplies what it sums, where nothing else
  reads the products, and reads the factors from memory.
- Reshapes and optimization barriers are other names of the same buffer; a slice or a fill of a value for one
  reader (a conversion without communication) is a cheap op.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.ir import Op, Rule
from autopar.planner.atoms import Atom, Atoms
from autopar.planner.conversion import Arc
from autopar.sharding.layout import LOCAL, Layout, Move

Key = tuple[int, bool, Layout | None]  # value id, a copy for late readers only, its layout (None: as made)
Arcs = Mapping[tuple[int, bool], tuple[Arc, ...]]

STANDALONE = frozenset({
    "dot_general", "ragged_dot_general", "conv_general_dilated", "scatter-add", "scatter", "scatter-mul",
    "scatter-min", "scatter-max", "scatter_add", "scatter_mul", "sort", "top_k", "approx_top_k", "cumsum",
    "cumprod", "cummax", "cummin", "cumlogsumexp", "reduce_window_sum", "reduce_window_max", "reduce_window_min",
    "reduce_window", "select_and_scatter_add", "select_and_gather_add", "fft", "random_bits", "argmax", "argmin",
    "threefry2x32", "random_split", "random_fold_in",
})  # fmt: skip
"""Primitives that run as kernels of their own."""

COSTLY = frozenset({
    "exp", "exp2", "expm1", "log", "log1p", "log2", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan",
    "pow", "rsqrt", "sqrt", "cbrt", "div", "rem", "atan2", "gather",
})  # fmt: skip
"""Primitives too dear to run once in every kernel that reads their result."""

ALIASES = frozenset({
    "reshape", "squeeze", "expand_dims", "optimization_barrier", "random_wrap", "random_unwrap", "bitcast_convert_type",
    "copy", "stop_gradient",
})  # fmt: skip
"""Primitives whose result lies in their operand's buffer."""

PRODUCTS = frozenset({"mul", "square"})
"""Primitives that a library's reduction computes on the way."""

_NONE, _SEVERAL = -1, -2
_SHORT_ROW = 32  # elements; XLA cuts longer reductions into a tree whose first level reads memory


@dataclass(slots=True)
class Use:
    """How an array is read.

    Attributes:
      memory: some reader needs it stored.
      kernel: the only kernel that computes it inside; -1 none, -2 several.
      summed: its only reader is a library's reduction.
      stored, inside: what follows: it has a buffer; it is computed inside the kernels that can.
    """

    memory: bool = False
    kernel: int = _NONE
    summed: bool = False
    stored: bool = False
    inside: bool = False

    def read_inside(self, kernel: int) -> None:
        """Read by a kernel that can compute it."""
        self.kernel = kernel if self.kernel in (_NONE, kernel) else _SEVERAL

    def read_alike(self, other: Use) -> None:
        """Read as another name of the array is read."""
        self.memory |= other.memory
        if other.kernel != _NONE:
            self.read_inside(other.kernel)


@dataclass
class Reading:
    """What every reader reads.

    Attributes:
      atoms: the step.
      copy: (atom index, operand slot) -> the copy that it reads, where that is not the value as made.
      arcs: (value, for late readers only) -> conversions, in order.
      uses: how each array is read; see :func:`placed`.
    """

    atoms: Atoms
    copy: Mapping[tuple[int, int], Key] = field(default_factory=dict)
    arcs: Arcs = field(default_factory=dict)
    uses: dict[Key, Use] = field(default_factory=dict)

    def use(self, key: Key) -> Use:
        """The use of an array."""
        found = self.uses.get(key)
        if found is None:
            found = self.uses[key] = Use()
        return found

    def operand(self, atom: Atom, slot: int) -> Key:
        """The array that an atom reads."""
        return self.copy.get((atom.index, slot)) or (atom.operands[slot], False, None)

    def conversions(self, v: int) -> list[tuple[Key, Key, Move]]:
        """(source, copy, move) of every conversion of a value, in order."""
        found: list[tuple[Key, Key, Move]] = []
        if (v, False) not in self.arcs and (v, True) not in self.arcs:
            return found
        for late in (False, True):
            arcs = self.arcs.get((v, late), ())
            copies = {move.apply(src) for src, move in arcs}
            for src, move in arcs:
                source: Key = (v, late, src) if src in copies else (v, False, None)
                found.append((source, (v, late, move.apply(src)), move))
        return found


def placed(reading: Reading) -> Reading:
    """Decide for every array whether it is stored, from the last reader to the first."""
    atoms = reading.atoms.atoms
    for atom in atoms:
        for slot in range(len(atom.operands) if atom.kind != "op" else 0):
            use = reading.use(reading.operand(atom, slot))
            if _writes_a_slice(atom, slot):
                use.read_inside(atom.index)
            else:
                use.memory = True
    for atom in reversed(atoms):
        for v in atom.results:
            for source, copy, move in reversed(reading.conversions(v)):
                _place_copy(reading, source, copy, move.kind in LOCAL)
        if atom.kind == "op":
            _place_op(reading, atom)
        else:
            for v in atom.results:
                use = reading.use((v, False, None))
                use.stored, use.inside = _is_slice(atom, v) and use.memory, True
    return reading


@dataclass(frozen=True, slots=True)
class Role:
    """What an op is to kernels.

    Attributes:
      alias: its result lies in its operand's buffer.
      fuses: it can be part of a kernel.
      absorbs: its kernel computes its operands inside: not if it sums columns, or long rows.
      reduces: it reduces dims.
      costly: it is too dear to run once in every kernel that reads its result.
    """

    alias: bool
    fuses: bool
    absorbs: bool
    reduces: bool
    costly: bool


def role(op: Op) -> Role:
    """The role of an op."""
    return _role(op.primitive, op.rule, op.opaque or len(op.results) != 1)


@functools.lru_cache(maxsize=10_000)
def _role(primitive: str, rule: Rule, alone: bool) -> Role:
    fuses = primitive not in STANDALONE and not alone
    reduces = primitive.startswith("reduce_") and primitive != "reduce_precision"
    absorbs = fuses and (not reduces or _short_rows(rule))
    return Role(primitive in ALIASES and not alone, fuses, absorbs, reduces, primitive in COSTLY)


def _short_rows(rule: Rule) -> bool:
    """Whether a reduction goes over everything, or along the last dim and over few elements."""
    kept = {f for dim in rule.results[0] for f in dim}
    dims = rule.operands[0]
    reduced = [d for d, factors in enumerate(dims) if any(f not in kept for f in factors)]
    if len(reduced) == len(dims):
        return True
    longest = max((rule.factors[f].size for d in reduced for f in dims[d]), default=1)
    return bool(reduced) and reduced[-1] == len(dims) - 1 and longest <= _SHORT_ROW


def _writes_a_slice(atom: Atom, slot: int) -> bool:
    """Whether a read is that of a scan's body handing out one slice of a stacked result."""
    op = atom.op
    if atom.kind != "port" or op is None or op.loop is None or op.loop.kind != "scan":
        return False
    return atom.operands[slot] not in op.operands and atom.results[-1] in op.results[op.loop.carry :]


def _is_slice(atom: Atom, v: int) -> bool:
    """Whether a value is the slice that a scan's body gets of a stacked operand."""
    op = atom.op
    if atom.kind != "port" or op is None or op.loop is None or op.loop.kind != "scan" or v in op.results:
        return False
    return v in op.regions[0].inputs[op.loop.consts + op.loop.carry :]


def _place_op(reading: Reading, atom: Atom) -> None:
    op = atom.op
    assert op is not None
    is_ = role(op)
    uses = [reading.use((v, False, None)) for v in atom.results]
    operands = [reading.use(reading.operand(atom, slot)) for slot in range(len(atom.operands))]
    if reading.atoms.step.apart and op.where.phase != "forward":
        for v, operand in zip(atom.operands, operands, strict=True):
            maker = reading.atoms.atoms[reading.atoms.producer[v][0]].op
            operand.memory |= maker is not None and maker.loop is None and maker.where.phase == "forward"
    if is_.alias:
        for operand in operands:
            operand.read_alike(uses[0])
        return
    if not is_.fuses:
        for use in uses:
            use.stored, use.inside = True, False
        for operand in operands:
            operand.memory = True
        return
    use = uses[0]
    use.summed &= op.primitive in PRODUCTS
    use.stored, use.inside = (False, True) if use.summed else _decide(reading, atom, is_, use)
    kernel = atom.index if not use.inside else _SEVERAL if use.stored else use.kernel
    for v, operand in zip(atom.operands, operands, strict=True):
        if is_.absorbs and not use.summed:
            operand.read_inside(kernel)
        elif _is_summed(reading, v):
            operand.summed = True
        else:
            operand.memory = True


def _is_summed(reading: Reading, v: int) -> bool:
    """Whether an operand of a library's reduction is a product that nothing else reads."""
    atoms = reading.atoms
    maker = atoms.atoms[atoms.producer[v][0]].op
    converted = (v, False) in reading.arcs or (v, True) in reading.arcs
    return maker is not None and maker.primitive in PRODUCTS and len(atoms.readers[v]) == 1 and not converted


def _decide(reading: Reading, atom: Atom, is_: Role, use: Use) -> tuple[bool, bool]:
    """Whether the result of an op that fuses is stored, and whether it is computed inside its readers."""
    if is_.reduces:
        return True, False
    if is_.costly:
        alone = not use.memory and use.kernel != _SEVERAL
        return not alone, alone
    if not use.memory:
        return use.kernel == _NONE, use.kernel != _NONE
    return True, use.kernel != _NONE and _reads_no_more(reading, atom)


def _reads_no_more(reading: Reading, atom: Atom) -> bool:
    """Whether computing a result again reads no more memory than reading it."""
    values = reading.atoms.step.graph.values
    result = values[atom.results[0]]
    operands = [values[v] for v in atom.operands]
    whole = sum(x.size >= result.size for x in operands)
    return whole <= 1 or sum(x.nbytes for x in operands) <= result.nbytes


def _place_copy(reading: Reading, source: Key, copy: Key, local: bool) -> None:
    use, origin = reading.use(copy), reading.use(source)
    use.stored, use.inside = use.memory or not local, local and use.kernel != _NONE
    if not local:
        origin.memory = True
        return
    if use.stored:
        origin.read_inside(_SEVERAL)
    if use.inside:
        origin.read_inside(use.kernel)
