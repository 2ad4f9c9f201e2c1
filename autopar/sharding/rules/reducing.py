"""Reductions, scans along a dim, sorting: what they do to the other dims is nothing."""

from __future__ import annotations

from collections.abc import Callable

from autopar.ir import Kind, Reduce, Rule
from autopar.sharding.rules.site import Factors, Site, letter, linear_groups


def reduction(reduce: Reduce | None, linear: bool = False, bools: bool = False) -> Callable[[Site], Rule]:
    """A builder for a reduction over ``axes``.

    Args:
      reduce: how partial results combine; None keeps the reduced dims whole.
      linear: whether partial sums pass.
      bools: the partial results combine this way for booleans only (``and`` is min, ``or`` is max).
    """

    def build(site: Site) -> Rule:
        x = site.operands[0]
        axes = {a % len(x.shape) for a in site.params["axes"]}
        partial = reduce if not bools or x.dtype == "bool" else None
        gone = Kind.WHOLE if partial is None else Kind.REDUCTION
        f = Factors()
        dims = [
            f.new(letter(d), n, gone if d in axes else Kind.PARALLEL, partial or Reduce.SUM)
            for d, n in enumerate(x.shape)
        ]
        kept = [p for d, p in enumerate(dims) if d not in axes]
        return f.rule([dims], [kept], linear_groups(site, (0,)) if linear else (), flops=x.size)

    return build


def reduce_any(site: Site) -> Rule:
    """A reduction by a user's function: operands, then their initial values; the reduced dims are whole."""
    n = len(site.operands) // 2
    axes = set(site.params["dimensions"])
    f = Factors()
    dims = [
        f.new(letter(d), m, Kind.WHOLE if d in axes else Kind.PARALLEL) for d, m in enumerate(site.operands[0].shape)
    ]
    kept = [p for d, p in enumerate(dims) if d not in axes]
    return f.rule([*[dims] * n, *[()] * n], [kept] * len(site.results), flops=n * site.operands[0].size)


def along(param: str, linear: bool = False) -> Callable[[Site], Rule]:
    """A builder for a primitive that keeps shapes and runs along one dim, named by a parameter (cumsum, sort)."""

    def build(site: Site) -> Rule:
        shape = site.operands[0].shape
        dim = site.params[param] % max(len(shape), 1)
        f = Factors()
        dims = [f.new(letter(d), n, Kind.WHOLE if d == dim else Kind.PARALLEL) for d, n in enumerate(shape)]
        groups = linear_groups(site, (0,)) if linear else ()
        return f.rule([dims] * len(site.operands), [dims] * len(site.results), groups, flops=site.operands[0].size)

    return build


def top_k(site: Site) -> Rule:
    """The searched dim is whole, and short in the results."""
    x = site.operands[0]
    dim = site.params.get("axis", -1) % len(x.shape)
    f = Factors()
    dims = [f.new(letter(d), n, Kind.WHOLE if d == dim else Kind.PARALLEL) for d, n in enumerate(x.shape)]
    out = [*dims]
    out[dim] = f.whole("top", site.results[0].shape[dim])
    return f.rule([dims], [out] * len(site.results), flops=x.size)
