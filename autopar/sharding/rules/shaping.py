"""Primitives that move elements without computing: broadcast, reshape, transpose, slice, pad, concatenate, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.ir import Kind, Rule
from autopar.sharding.rules.site import Factors, Site, letter, linear_groups

Dim = tuple[int, ...]


def broadcast_in_dim(site: Site) -> Rule:
    """Dims that the operand lacks, or has with size 1, are free."""
    shape = site.results[0].shape
    x = site.operands[0]
    source = {out: d for d, out in enumerate(site.params["broadcast_dimensions"])}
    f = Factors()
    out: list[Dim] = []
    ins: list[Dim] = [()] * len(x.shape)
    for d, n in enumerate(shape):
        given = d in source and x.shape[source[d]] == n
        out.append(f.new(letter(d), n, Kind.PARALLEL if given else Kind.FREE))
        if given:
            ins[source[d]] = out[-1]
    # A literal may be a partial sum here: accumulators of zeros then cost nothing.
    linear = linear_groups(Site(site.primitive, site.operands[:1], site.results), (0,))
    return f.rule([ins, *([()] * len(v.shape) for v in site.operands[1:])], [out], linear)


def iota(site: Site) -> Rule:
    """Every device can count its own part."""
    f = Factors()
    out = [f.new(letter(d), n, Kind.FREE) for d, n in enumerate(site.results[0].shape)]
    return f.rule([[()] * len(v.shape) for v in site.operands], [out])


def transpose(site: Site) -> Rule:
    """Dims change places."""
    f = Factors()
    ins = [f.new(letter(d), n) for d, n in enumerate(site.operands[0].shape)]
    return f.rule([ins], [[ins[d] for d in site.params["permutation"]]], linear_groups(site, (0,)))


def squeeze(site: Site) -> Rule:
    """Dims of size 1 vanish."""
    x = site.operands[0]
    gone = {d % len(x.shape) for d in site.params["dimensions"]}
    f = Factors()
    ins = [f.new(letter(d), n) for d, n in enumerate(x.shape)]
    return f.rule([ins], [[p for d, p in enumerate(ins) if d not in gone]], linear_groups(site, (0,)))


def reshape(site: Site) -> Rule:
    """Both shapes are refined into common factors; a run that has none is whole."""
    f = Factors()
    if site.params.get("dimensions") is not None or site.operands[0].size == 0:
        ins = [f.whole(letter(d), n) for d, n in enumerate(site.operands[0].shape)]
        outs = [f.whole(letter(d), n) for d, n in enumerate(site.results[0].shape)]
    else:
        ins, outs = refine(f, site.operands[0].shape, site.results[0].shape)
    return f.rule([ins], [outs], linear_groups(site, (0,)))


def refine(f: Factors, old: Sequence[int], new: Sequence[int]) -> tuple[list[Dim], list[Dim]]:
    """Factors of two row-major shapes of equal size, major to minor.

    ``(8, 12) -> (96,)`` gives ``a b -> (a b)``. Where the next dims of the two sides share only a common
    divisor g, the leading g rows are one factor (whole slabs of both sides agree) and what is left is whole
    until the two sides line up again.
    """
    ins: list[Dim] = [()] * len(old)
    outs: list[Dim] = [()] * len(new)
    i, j, count = -1, -1, 0
    left = right = 1  # what is still to be covered of the current dim on each side

    def name() -> str:
        nonlocal count
        count += 1
        return chr(ord("a") + count - 1) if count <= 26 else f"a{count}"

    while True:
        while left == 1 and i + 1 < len(old):
            i += 1
            left = old[i]
        while right == 1 and j + 1 < len(new):
            j += 1
            right = new[j]
        if left == 1 and right == 1:
            return ins, outs
        shared = math.gcd(left, right)
        if shared > 1:
            factor = f.new(name(), shared)
            ins[i] += factor
            outs[j] += factor
            left, right = left // shared, right // shared
        if left > 1 and right > 1:  # coprime: whole until the products meet
            below, above = left, right
            ins[i] += f.whole(name(), left)
            outs[j] += f.whole(name(), right)
            while below != above:
                if below < above:
                    i += 1
                    ins[i] += f.whole(name(), old[i])
                    below *= old[i]
                else:
                    j += 1
                    outs[j] += f.whole(name(), new[j])
                    above *= new[j]
            left = right = 1


def rev(site: Site) -> Rule:
    """Reversed dims are whole."""
    turned = set(site.params["dimensions"])
    f = Factors()
    dims = [f.new(letter(d), n, _kind(d in turned)) for d, n in enumerate(site.operands[0].shape)]
    return f.rule([dims], [dims], linear_groups(site, (0,)))


def _kind(whole: bool) -> Kind:
    return Kind.WHOLE if whole else Kind.PARALLEL


def concatenate(site: Site) -> Rule:
    """Whole in the joined dim."""
    return _joined(site, site.params["dimension"])


def split(site: Site) -> Rule:
    """Whole in the cut dim."""
    return _joined(site, site.params["axis"])


def _joined(site: Site, dim: int) -> Rule:
    f = Factors()
    shared = [() if d == dim else f.new(letter(d), n) for d, n in enumerate(site.results[0].shape)]

    def dims(shape: Sequence[int], tag: str) -> list[Dim]:
        return [f.whole(tag, shape[dim]) if d == dim else p for d, p in enumerate(shared)]

    ins = [dims(v.shape, f"c{i}") for i, v in enumerate(site.operands)]
    outs = [dims(v.shape, f"r{i}") for i, v in enumerate(site.results)]
    return f.rule(ins, outs, linear_groups(site, range(len(site.operands))))


def pad(site: Site) -> Rule:
    """Padded dims are whole. Padding with zero is linear; with a value, jointly with that value."""
    x, y = site.operands[0], site.results[0]
    ins, outs, f = _resized(x.shape, y.shape, [tuple(c) != (0, 0, 0) for c in site.params["padding_config"]])
    zero = 1 in site.constants and site.constants[1] == 0
    return f.rule([ins, ()], [outs], linear_groups(site, (0,) if zero else (0, 1)))


def slice_(site: Site) -> Rule:
    """Dims kept in full are parallel, cut dims whole."""
    x, y = site.operands[0], site.results[0]
    ins, outs, f = _resized(x.shape, y.shape, [n != m for n, m in zip(x.shape, y.shape, strict=True)])
    return f.rule([ins], [outs], linear_groups(site, (0,)))


def dynamic_slice(site: Site) -> Rule:
    """Dims kept in full are parallel (their index is clamped to 0), cut dims whole."""
    x, y = site.operands[0], site.results[0]
    ins, outs, f = _resized(x.shape, y.shape, [n != m for n, m in zip(x.shape, y.shape, strict=True)])
    return f.rule([ins, *((),) * (len(site.operands) - 1)], [outs], linear_groups(site, (0,)))


def dynamic_update_slice(site: Site) -> Rule:
    """Dims replaced in full are parallel, the others whole; operand and update are jointly linear."""
    x, update = site.operands[:2]
    cut = [n != m for n, m in zip(x.shape, update.shape, strict=True)]
    ins, part, f = _resized(x.shape, update.shape, cut)
    return f.rule([ins, part, *((),) * (len(site.operands) - 2)], [ins], linear_groups(site, (0, 1)))


def _resized(old: Sequence[int], new: Sequence[int], whole: Sequence[bool]) -> tuple[list[Dim], list[Dim], Factors]:
    f = Factors()
    ins = [f.new(letter(d), n, _kind(w)) for d, (n, w) in enumerate(zip(old, whole, strict=True))]
    outs = [f.whole(f"{letter(d)}r", m) if w else ins[d] for d, (m, w) in enumerate(zip(new, whole, strict=True))]
    return ins, outs, f


def stack(site: Site) -> Rule:
    """Operands side by side along a new, whole dim; jointly linear."""
    axis = site.params["axis"]
    f = Factors()
    part = [f.new(letter(d), n) for d, n in enumerate(site.operands[0].shape)]
    out = [*part[:axis], f.whole("stack", len(site.operands)), *part[axis:]]
    return f.rule([part] * len(site.operands), [out], linear_groups(site, range(len(site.operands))))


def unstack(site: Site) -> Rule:
    """The inverse of :func:`stack`."""
    axis = site.params["axis"]
    f = Factors()
    dims = [(f.whole if d == axis else f.new)(letter(d), n) for d, n in enumerate(site.operands[0].shape)]
    return f.rule([dims], [[*dims[:axis], *dims[axis + 1 :]]] * len(site.results), linear_groups(site, (0,)))


def tile(site: Site) -> Rule:
    """Repeats are a free factor, major to the repeated dim."""
    f = Factors()
    ins = [f.new(letter(d), n) for d, n in enumerate(site.operands[0].shape)]
    out = [f.new(f"{letter(d)}_rep", n, Kind.FREE) + ins[d] for d, n in enumerate(site.params["reps"])]
    return f.rule([ins], [out], linear_groups(site, (0,)))
