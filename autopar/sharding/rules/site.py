"""One primitive application as rules see it: shapes, dtypes and parameters, without jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopar.ir import Dims, Factor, Kind, Reduce, Rule, Value

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
_WIDER = {
    "float16": {"float32", "float64", "complex64", "complex128"},
    "bfloat16": {"float32", "float64", "complex64", "complex128"},
    "float32": {"float64", "complex64", "complex128"},
    "float64": {"complex128"},
    # Dropping the imaginary part is exact, and linear.
    "complex64": {"complex128", "float32", "float64"},
    "complex128": {"float64"},
}


@dataclass(frozen=True)
class Site:
    """One primitive application.

    Attributes:
      primitive: jax primitive name.
      operands, results: the arrays read and made.
      params: the equation's parameters, as jax keeps them (read by name only).
      constants: operand index -> scalar, where the operand is a literal of the program.
    """

    primitive: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Any] = field(default_factory=dict)


def summable(dtype: str) -> bool:
    """Whether values of this dtype can be kept as partial sums (booleans, keys and 8-bit floats cannot)."""
    return dtype in FLOATS or dtype in INTEGERS


def widens(src: str, dst: str) -> bool:
    """Whether a partial sum keeps its meaning from ``src`` to ``dst``: equal, a wider float, or a real part."""
    return summable(src) and (src == dst or dst in _WIDER.get(src, ()))


def linear_groups(site: Site, *groups: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """The groups whose dtypes can hold partial sums; a group of program literals alone is of no use."""
    kept = []
    for group in map(tuple, groups):
        typed = all(widens(site.operands[i].dtype, r.dtype) for i in group for r in site.results)
        if group and typed and not all(i in site.constants for i in group):
            kept.append(group)
    return tuple(kept)


class Factors:
    """Collects the factors of one rule while its dims are being written."""

    def __init__(self) -> None:
        self._found: list[Factor] = []
        self._names: set[str] = set()

    def new(
        self,
        name: str,
        size: int,
        kind: Kind = Kind.PARALLEL,
        reduce: Reduce = Reduce.SUM,
        halo: tuple[int, int] = (0, 0),
    ) -> tuple[int, ...]:
        """The dim made of one new factor; no factor, so ``()``, where the size is 0 or 1."""
        if size <= 1:
            return ()
        unique, n = name, 1
        while unique in self._names:
            unique, n = f"{name}_{n}", n + 1
        self._names.add(unique)
        self._found.append(Factor(unique, size, kind, reduce, halo))
        return (len(self._found) - 1,)

    def whole(self, name: str, size: int) -> tuple[int, ...]:
        """The dim made of one new factor that cannot be split."""
        return self.new(name, size, Kind.WHOLE)

    def rule(
        self,
        operands: Iterable[Iterable[tuple[int, ...]]],
        results: Iterable[Iterable[tuple[int, ...]]],
        linear: tuple[tuple[int, ...], ...] = (),
        accumulators: tuple[int, ...] = (),
        flops: float = 0.0,
    ) -> Rule:
        """The finished rule."""
        ins: tuple[Dims, ...] = tuple(tuple(t) for t in operands)
        outs: tuple[Dims, ...] = tuple(tuple(t) for t in results)
        return Rule(tuple(self._found), ins, outs, linear, accumulators, float(flops))


def letter(dim: int) -> str:
    """A short name for tensor dim ``dim``: i, j, k, ..."""
    return "ijklmnpqrstuvwxyz"[dim] if dim < 17 else f"i{dim}"


def opaque_rule(site: Site) -> Rule:
    """The rule of an op about which nothing is known: every dim is whole, nothing is linear."""
    f = Factors()
    operands = [[f.whole(f"{letter(d)}{i}", n) for d, n in enumerate(v.shape)] for i, v in enumerate(site.operands)]
    results = [[f.whole(f"{letter(d)}r{i}", n) for d, n in enumerate(v.shape)] for i, v in enumerate(site.results)]
    return f.rule(operands, results, flops=sum(v.size for v in site.results))
