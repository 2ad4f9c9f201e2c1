"""Rules that users write for their own primitives and Pallas kernels, as einsum-like lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopar.errors import RuleError
from autopar.ir import Kind, Reduce, Rule, Value
from autopar.sharding.rules.site import Factors, Site

Words = tuple[tuple[str, ...], ...]  # one tensor: per dim, the names of its factors
_DIM = re.compile(r"\s*(?:\(([^()]*)\)|([^\s()]+))")


@dataclass(frozen=True)
class UserRule:
    """A parsed rule, before it meets shapes. Attributes are those of :func:`register_rule`."""

    primitive: str
    text: str
    operands: tuple[Words, ...]
    results: tuple[Words, ...]
    reduce: Mapping[str, Reduce] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    halo: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    linear: tuple[tuple[int, ...], ...] = ()
    flops: Callable[[Mapping[str, int]], float] | None = None

    def build(self, site: Site) -> Rule:
        """The rule for the shapes of ``site``.

        Raises:
          RuleError: the shapes do not fit the line.
        """
        sizes = self._sizes(site)
        f = Factors()
        made = {
            name: f.new(name, n, self._kind(name), self.reduce.get(name, Reduce.SUM), self.halo.get(name, (0, 0)))
            for name, n in sizes.items()
        }

        def dims(tensor: Words) -> list[tuple[int, ...]]:
            return [sum((made[name] for name in dim), ()) for dim in tensor]

        # Without a count given: one operation per point of the iteration space.
        points = 1.0
        for n in sizes.values():
            points *= n
        flops = self.flops(sizes) if self.flops is not None else points
        return f.rule(map(dims, self.operands), map(dims, self.results), self.linear, flops=flops)

    def _kind(self, name: str) -> Kind:
        read = any(name in dim for tensor in self.operands for dim in tensor)
        made = any(name in dim for tensor in self.results for dim in tensor)
        # A new dim is made in full: nothing tells the primitive to make only a part of it.
        if name in self.whole or not read:
            return Kind.WHOLE
        if name in self.halo:
            return Kind.HALO
        return Kind.PARALLEL if made else Kind.REDUCTION

    def _sizes(self, site: Site) -> dict[str, int]:
        sides = (("operands", self.operands, site.operands), ("results", self.results, site.results))
        pairs: list[tuple[tuple[str, ...], int, str]] = []
        for side, tensors, values in sides:
            if len(tensors) != len(values):
                raise RuleError(
                    f"{self.text!r} of {self.primitive} names {len(tensors)} {side}, the op has {len(values)}. "
                    f"Write one entry per array, '.' for a scalar."
                )
            for i, (tensor, value) in enumerate(zip(tensors, values, strict=True)):
                pairs += self._dims(f"{side[:-1]} {i}", tensor, value)
        sizes: dict[str, int] = {}
        for _ in range(len(pairs) + 1):
            for dim, n, _where in pairs:
                unknown = [name for name in dim if name not in sizes]
                rest = n
                for name in dim:
                    rest = rest // sizes[name] if sizes.get(name) else rest
                if len(unknown) == 1:
                    sizes[unknown[0]] = rest
        for dim, n, where in pairs:
            product = 1
            for name in dim:
                if name not in sizes:
                    raise RuleError(
                        f"{self.text!r} of {self.primitive}: the size of {name!r} in ({' '.join(dim)}) of {where} "
                        f"cannot be told from {n}. Only one factor of a compound dim may appear nowhere else."
                    )
                product *= sizes[name]
            if product != n:
                raise RuleError(
                    f"{self.text!r} of {self.primitive}: {' '.join(dim) or '1'!r} of {where} should be {product}, "
                    f"the array has {n} there. The same name means the same size everywhere."
                )
        return sizes

    def _dims(self, where: str, tensor: Words, value: Value) -> list[tuple[tuple[str, ...], int, str]]:
        if len(tensor) != len(value.shape):
            raise RuleError(
                f"{self.text!r} of {self.primitive} gives {where} {len(tensor)} dims, its shape is {value.shape}. "
                f"Write one name per dim, '1' for a dim of size 1."
            )
        return [(dim, n, where) for dim, n in zip(tensor, value.shape, strict=True)]


_registered: dict[str, UserRule] = {}


def find(primitive: str) -> UserRule | None:
    """The user's rule of a primitive, if there is one."""
    return _registered.get(primitive)


def register_rule(
    primitive: Any,
    text: str,
    *,
    reduce: Mapping[str, str] | None = None,
    whole: Iterable[str] = (),
    halo: Mapping[str, tuple[int, int]] | None = None,
    linear: Iterable[Iterable[int]] = (),
    flops: Callable[[Mapping[str, int]], float] | None = None,
) -> None:
    """Tell autopar how a primitive of yours may be split.

    The primitive must accept shards: its parameters may not hold global shapes. A later call for the same
    primitive replaces the earlier one; a rule for a primitive that autopar knows comes before its own.

    Args:
      primitive: a jax ``Primitive`` or its name.
      text: an einsum-like line, one name per dim: ``"q d, k d -> q k"``. ``(a b)`` is a dim that two
        factors make up, major first; ``1`` a dim of size 1; ``.`` a scalar. Sizes follow from the arrays. A
        name on both sides is parallel, a name on the right only cannot be split.
      reduce: name on the left only -> how partial results combine: ``sum``, ``max`` or ``min``.
      whole: names that cannot be split.
      halo: name -> points of operand 0 needed from the (lower, higher) neighbour. The op must treat what lies
        outside its operand as zeros, and keep the size of the dim.
      linear: groups of operand indices in which the op is jointly linear, so that partial sums may pass.
      flops: sizes of the factors by name -> floating-point operations; one per point where not given.

    Raises:
      RuleError: the line cannot be read, or a name has no clear kind.

    Example:
      >>> register_rule("my_matmul", "m k, k n -> m n", reduce={"k": "sum"}, linear=[(0,), (1,)],
      ...               flops=lambda size: 2.0 * size["m"] * size["k"] * size["n"])
    """
    name = primitive if isinstance(primitive, str) else str(getattr(primitive, "name", primitive))
    rule = UserRule(
        name,
        text,
        *_parse(name, text),
        {k: _reduce(name, k, v) for k, v in (reduce or {}).items()},
        frozenset(whole),
        dict(halo or {}),
        tuple(tuple(group) for group in linear),
        flops,
    )
    _check(rule)
    _registered[name] = rule


def unregister_rule(primitive: Any) -> None:
    """Forget a rule given by :func:`register_rule`; nothing happens where there is none."""
    _registered.pop(primitive if isinstance(primitive, str) else primitive.name, None)


def _reduce(primitive: str, name: str, word: str) -> Reduce:
    try:
        return Reduce(word)
    except ValueError:
        raise RuleError(f"rule of {primitive}: {name!r} combines by {word!r}; it can be sum, max or min.") from None


def _parse(primitive: str, text: str) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    left, arrow, right = text.partition("->")
    if not arrow:
        raise RuleError(f"rule {text!r} of {primitive} has no '->'. Write operands -> results: 'q d, k d -> q k'.")
    return _side(primitive, text, left), _side(primitive, text, right)


def _side(primitive: str, text: str, side: str) -> tuple[Words, ...]:
    return tuple(_tensor(primitive, text, part.strip()) for part in side.split(",")) if side.strip() else ()


def _tensor(primitive: str, text: str, part: str) -> Words:
    found: list[tuple[str, ...]] = []
    at = 0
    while part != "." and at < len(part):
        match = _DIM.match(part, at)
        if match is None:
            raise RuleError(f"rule {text!r} of {primitive}: cannot read {part[at:]!r}. Parentheses must pair up.")
        names = tuple(n for n in (match[1] if match[1] is not None else match[2]).split() if n != "1")
        for name in names:
            if not name.isidentifier():
                raise RuleError(f"rule {text!r} of {primitive}: {name!r} is no name. Use letters, digits and '_'.")
        found.append(names)
        at = match.end()
    for dim in found:
        for name in dim:
            if sum(d.count(name) for d in found) > 1:
                raise RuleError(f"rule {text!r} of {primitive}: {name!r} stands twice in {part!r}; use two names.")
    return tuple(found)


def _check(rule: UserRule) -> None:
    read = {name for tensor in rule.operands for dim in tensor for name in dim}
    made = [{name for dim in tensor for name in dim} for tensor in rule.results]
    everywhere = set.intersection(*made) if made else set()
    anywhere = set().union(*made)
    said = f"rule {rule.text!r} of {rule.primitive}"
    for name in (*rule.reduce, *rule.whole, *rule.halo):
        if name not in read | anywhere:
            raise RuleError(f"{said} has no factor {name!r}, which was given a kind. It has {sorted(read | anywhere)}.")
    for name in sorted((read | anywhere) - rule.whole):
        if name in rule.reduce:
            if name in anywhere:
                raise RuleError(f"{said}: {name!r} is reduced, so it cannot be a dim of a result.")
        elif name not in anywhere:
            raise RuleError(
                f"{said}: {name!r} is in no result. Say reduce={{{name!r}: 'sum'}} (or max, min) if parts of it give "
                f"partial results, whole=({name!r},) if it cannot be split."
            )
        elif name not in everywhere:
            raise RuleError(
                f"{said}: {name!r} is in some results but not in all, so the others would differ between devices. "
                f"Say whole=({name!r},)."
            )
    for name in rule.halo:
        first = rule.operands[0] if rule.operands else ()
        if not any(dim == (name,) for dim in first):
            raise RuleError(f"{said}: {name!r} has a halo, so it must be a dim of operand 0, alone.")
    for group in rule.linear:
        if any(not 0 <= i < len(rule.operands) for i in group):
            raise RuleError(f"{said}: linear group {group} names operands beyond the {len(rule.operands)} there are.")
