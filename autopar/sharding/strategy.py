"""From a rule to strategies: on each mesh axis an op takes one action.

An action splits one factor over the axis, lets a partial sum pass through linear operands, or repeats the
work everywhere. It fixes the placement of every operand and result on that axis. A strategy is one action
per mesh axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from autopar.ir import Dims, Kind, Reduce, Rule
from autopar.sharding.layout import MAX, MIN, REPLICATED, SUM, Layout

_PARTIAL = {Reduce.SUM: SUM, Reduce.MAX: MAX, Reduce.MIN: MIN}

REPEAT = "-"


@dataclass(frozen=True, slots=True)
class Action:
    """What an op does along one mesh axis.

    Attributes:
      name: the factor's name, ``+0,1`` (partial sums pass through operands 0 and 1), or ``-`` (repeat).
      factor: index of the factor that is split, or None.
      operands: placement of each operand along the axis.
      results: placement of each result.
    """

    name: str
    factor: int | None
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One action per mesh axis, and what follows from it.

    Attributes:
      actions: per mesh axis.
      operands: the layout each operand must have.
      results: the layout each result then has.
      parallel: number of devices that share the work (repeated work is not shared).
    """

    actions: tuple[Action, ...]
    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]
    parallel: int

    @property
    def names(self) -> tuple[str, ...]:
        """The action names, as a plan records them."""
        return tuple(a.name for a in self.actions)


def _dim_of(tensor: Dims, factor: int) -> int:
    return next((d for d, factors in enumerate(tensor) if factor in factors), REPLICATED)


@lru_cache(maxsize=100_000)
def actions(rule: Rule) -> tuple[Action, ...]:
    """Every action of an op, ``-`` first."""
    n_in, n_out = len(rule.operands), len(rule.results)
    found = [Action(REPEAT, None, (REPLICATED,) * n_in, (REPLICATED,) * n_out)]
    for index, factor in enumerate(rule.factors):
        if factor.kind is Kind.WHOLE or factor.size == 1:
            continue
        ins = [_dim_of(t, index) for t in rule.operands]
        outs = [_dim_of(t, index) for t in rule.results]
        if factor.kind is Kind.REDUCTION:
            partial = _PARTIAL[factor.reduce]
            ins = [SUM if i in rule.accumulators else p for i, p in enumerate(ins)]
            outs = [partial if p == REPLICATED else p for p in outs]
        found.append(Action(factor.name, index, tuple(ins), tuple(outs)))
    for group in rule.linear:
        through = tuple(SUM if i in group else REPLICATED for i in range(n_in))
        found.append(Action("+" + ",".join(map(str, group)), None, through, (SUM,) * n_out))
    return tuple(found)


@lru_cache(maxsize=100_000)
def strategies(rule: Rule, mesh: tuple[int, ...]) -> tuple[Strategy, ...]:
    """Every legal strategy of an op on a mesh of axis sizes ``mesh``.

    Illegal are: a factor that does not divide; a minor factor of a compound dim split while a major one is
    not fully split by earlier axes (the parts would not be contiguous); two axes on one halo factor.
    """
    per_axis = [actions(rule) if size > 1 else actions(rule)[:1] for size in mesh]
    return tuple(_strategy(choice, mesh) for choice in itertools.product(*per_axis) if _legal(rule, choice, mesh))


def named(rule: Rule, mesh: tuple[int, ...], names: Sequence[str]) -> Strategy | None:
    """The strategy with these action names (as a plan records it), or None if there is none."""
    return _named(rule, mesh, tuple(names))


@lru_cache(maxsize=100_000)
def _named(rule: Rule, mesh: tuple[int, ...], names: tuple[str, ...]) -> Strategy | None:
    by_name = {a.name: a for a in actions(rule)}
    if len(names) != len(mesh) or any(n not in by_name for n in names):
        return None
    choice = tuple(by_name[n] for n in names)
    return _strategy(choice, mesh) if _legal(rule, choice, mesh) else None


def _strategy(choice: tuple[Action, ...], mesh: tuple[int, ...]) -> Strategy:
    parallel = 1
    for action, size in zip(choice, mesh, strict=True):
        parallel *= size if action.factor is not None else 1
    ins = tuple(zip(*(a.operands for a in choice), strict=True)) if choice else ()
    outs = tuple(zip(*(a.results for a in choice), strict=True)) if choice else ()
    return Strategy(choice, ins, outs, parallel)


def _legal(rule: Rule, choice: tuple[Action, ...], mesh: tuple[int, ...]) -> bool:
    split: dict[int, int] = {}
    for action, size in zip(choice, mesh, strict=True):
        f = action.factor
        if f is None:
            continue
        if rule.factors[f].kind is Kind.HALO and f in split:
            return False
        split[f] = split.get(f, 1) * size
    if any(rule.factors[f].size % n for f, n in split.items()):
        return False
    return all(
        _contiguous(rule, dim, choice, split)
        for tensor in (*rule.operands, *rule.results)
        for dim in tensor
        if len(dim) > 1
    )


def _contiguous(rule: Rule, dim: tuple[int, ...], choice: tuple[Action, ...], split: dict[int, int]) -> bool:
    """Splits of a compound dim must fill its factors from the major one down, in mesh axis order."""
    order = [dim.index(a.factor) for a in choice if a.factor in dim]
    if order != sorted(order):
        return False
    last = max(order, default=0)
    return all(split.get(f, 1) == rule.factors[f].size for f in dim[:last])
