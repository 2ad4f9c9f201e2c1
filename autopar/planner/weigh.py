"""Seconds of each choice of an atom: its local work by roofline, and halo exchanges it owes.

Elementwise neighbours run as one fused kernel, so an operand made inside the same kernel and a result read
only there cost no memory traffic. Which slots touch memory does not depend on layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.cost import collective_s, compute_s
from autopar.ir import Kind, Op, Value, item_bytes
from autopar.mesh import Device, LogicalMesh
from autopar.planner.atoms import Atom, Atoms
from autopar.sharding.halo import Exchange, exchanges
from autopar.sharding.layout import Collective, Layout, local_size
from autopar.sharding.strategy import named

STANDALONE = frozenset({
    "dot_general", "conv_general_dilated", "gather", "scatter-add", "scatter", "scatter-mul", "sort", "top_k",
    "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "reduce_window_sum", "reduce_window_max",
    "reduce_window_min", "reduce_window", "select_and_scatter_add", "select_and_gather_add", "concatenate",
    "dynamic_update_slice", "fft", "random_bits", "argmax", "argmin", "optimization_barrier",
    "scatter_add", "scatter_mul", "approx_top_k", "ragged_dot_general",
})  # fmt: skip
"""Primitives that run as kernels of their own."""

MATMULS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general"})
"""Primitives whose arithmetic runs at the rate of matmuls."""

_FREE = frozenset({"reshape", "squeeze", "expand_dims", "optimization_barrier", "random_wrap", "random_unwrap"})


def fusible(op: Op | None) -> bool:
    """Whether an op joins the kernel of its neighbours."""
    return op is not None and op.loop is None and op.primitive not in STANDALONE and not op.opaque


def is_reduction(op: Op) -> bool:
    """Whether an op ends a fused kernel with a smaller result."""
    return op.primitive.startswith("reduce_") and op.primitive != "reduce_precision"


def memory_slots(atoms: Atoms) -> Mapping[int, tuple[tuple[bool, ...], tuple[bool, ...]]]:
    """Per op atom: which operands are read from memory, which results are written to it."""
    group = _kernels(atoms)
    slots = {}
    seen: set[tuple[int, int]] = set()
    for atom in atoms.atoms:
        if atom.kind != "op":
            continue
        reads = []
        for v in atom.operands:
            outside = group[atoms.producer[v][0]] != group[atom.index]
            reads.append(outside and (group[atom.index], v) not in seen)
            seen.add((group[atom.index], v))
        writes = tuple(any(group[r] != group[atom.index] for r, _ in atoms.readers.get(v, ())) for v in atom.results)
        slots[atom.index] = (tuple(reads), writes)
    return slots


def _kernels(atoms: Atoms) -> list[int]:
    """Kernel of each atom: union of fusible ops along producer-reader edges within one phase."""
    parent = list(range(len(atoms.atoms)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for atom in atoms.atoms:
        if atom.kind != "op" or not fusible(atom.op):
            continue
        for v in atom.operands:
            maker = atoms.atoms[atoms.producer[v][0]]
            if maker.kind != "op" or not fusible(maker.op) or maker.frequency != atom.frequency:
                continue
            assert maker.op is not None and atom.op is not None
            if not is_reduction(maker.op) and maker.op.where.phase == atom.op.where.phase:
                parent[find(atom.index)] = find(maker.index)
    return [find(i) for i in range(len(parent))]


def halo_exchanges(
    op: Op, names: Sequence[str], mesh: tuple[int, ...], values: Mapping[int, Value]
) -> Sequence[Exchange]:
    """The halo exchanges that an op owes under the named actions."""
    if not any(f.kind is Kind.HALO for f in op.rule.factors):
        return ()
    strategy = named(op.rule, mesh, names)
    assert strategy is not None
    windowed = values[op.operands[0]]
    return exchanges(op.rule, strategy, mesh, windowed.shape, item_bytes(windowed.dtype))


class Kernels:
    """What each op's price depends on, found once per step: equal keys mean equal prices on any mesh."""

    def __init__(self, atoms: Atoms) -> None:
        values = atoms.step.graph.values
        self.slots = memory_slots(atoms)
        keys: dict[object, int] = {}
        self.key: list[int] = []
        for atom in atoms.atoms:
            if atom.kind != "op" or atom.op is None:
                self.key.append(-1)
                continue
            types = tuple((values[v].shape, values[v].dtype) for v in (*atom.operands, *atom.results))
            about = (atom.op.primitive, atom.op.params, atom.menu, self.slots[atom.index], types)
            self.key.append(keys.setdefault(about, len(keys)))


class Weigher:
    """Prices the choices of atoms on one device and mesh, cached by what the price depends on."""

    def __init__(self, atoms: Atoms, kernels: Kernels, mesh: LogicalMesh, device: Device) -> None:
        self._atoms = atoms
        self._values = atoms.step.graph.values
        self._kernels = kernels
        self._mesh = mesh
        self._device = device
        self._cache: dict[int, tuple[float, ...]] = {}

    def seconds(self, atom: Atom) -> tuple[float, ...]:
        """Seconds of every choice of ``atom``, for one run of it."""
        key = self.key(atom)
        found = self._cache.get(key)
        if found is None:
            found = self._price(atom) if atom.kind == "op" else (0.0,) * len(self._atoms.choices(atom))
            self._cache[key] = found
        return found

    def key(self, atom: Atom) -> int:
        """Atoms with equal keys cost the same."""
        key = self._kernels.key[atom.index]
        return key if key >= 0 else -1 - atom.menu

    def _price(self, atom: Atom) -> tuple[float, ...]:
        op = atom.op
        assert op is not None
        reads, writes = self._kernels.slots[atom.index]
        operands = [self._values[v] for v in atom.operands]
        results = [self._values[v] for v in atom.results]
        dtype = max((v.dtype for v in (*operands, *results)), key=_width, default="float32")
        prices = []
        for choice in self._atoms.choices(atom):
            nbytes = 0.0
            if op.primitive not in _FREE:
                nbytes += sum(self._bytes(v, x) for v, x, m in zip(operands, choice.operands, reads, strict=True) if m)
                nbytes += sum(self._bytes(v, x) for v, x, m in zip(results, choice.results, writes, strict=True) if m)
            flops = op.rule.flops / choice.parallel
            kind = {"starts": any(writes), "matmul": op.primitive in MATMULS}
            work = compute_s(self._device, _compute_dtype(operands, dtype), flops, nbytes, **kind)
            prices.append(work + sum(self._halo_seconds(op, choice.names)))
        return tuple(prices)

    def _bytes(self, value: Value, layout: Layout) -> int:
        return local_size(value.shape, layout, self._mesh.shape) * item_bytes(value.dtype)

    def _halo_seconds(self, op: Op, names: Sequence[str]) -> list[float]:
        found = halo_exchanges(op, names, self._mesh.shape, self._values)
        return [collective_s(Collective.PERMUTE, self._mesh.axes[e.axis], e.nbytes) for e in found]


def _width(dtype: str) -> int:
    return item_bytes(dtype) if dtype.startswith(("float", "bfloat", "complex")) else 0


def _compute_dtype(operands: Sequence[Value], default: str) -> str:
    """The type the arithmetic runs in: that of the operands (a matmul of bf16 may make f32)."""
    floats = [v.dtype for v in operands if _width(v.dtype)]
    return max(floats, key=_width) if floats else default
