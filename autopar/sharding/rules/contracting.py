"""dot_general and ragged_dot_general: what tensor, expert and data parallelism are made of."""

from __future__ import annotations

import math

from autopar.ir import Kind, Rule
from autopar.sharding.rules.site import Factors, Site, linear_groups, summable


def dot_general(site: Site) -> Rule:
    """``b m k, b k n -> b m n`` with any number of dims in each group. FLOPs: two per multiply-add."""
    (lhs_k, rhs_k), (lhs_b, rhs_b) = site.params["dimension_numbers"]
    lhs, rhs = site.operands
    f = Factors()
    batch = [f.new(f"b{i}", lhs.shape[d]) for i, d in enumerate(lhs_b)]
    kept = [d for d in range(len(lhs.shape)) if d not in lhs_k and d not in lhs_b]
    rows = [f.new(f"m{i}", lhs.shape[d]) for i, d in enumerate(kept)]
    # A product of booleans is an or: there is no sum to owe.
    kind = Kind.REDUCTION if summable(site.results[0].dtype) else Kind.WHOLE
    inner = [f.new(f"k{i}", lhs.shape[d], kind) for i, d in enumerate(lhs_k)]
    free = [d for d in range(len(rhs.shape)) if d not in rhs_k and d not in rhs_b]
    cols = [f.new(f"n{i}", rhs.shape[d]) for i, d in enumerate(free)]
    ins = dict([*zip(lhs_b, batch, strict=True), *zip(kept, rows, strict=True), *zip(lhs_k, inner, strict=True)])
    weights = dict([*zip(rhs_b, batch, strict=True), *zip(free, cols, strict=True), *zip(rhs_k, inner, strict=True)])
    return f.rule(
        [[ins[d] for d in range(len(lhs.shape))], [weights[d] for d in range(len(rhs.shape))]],
        [[*batch, *rows, *cols]],
        linear_groups(site, (0,), (1,)),
        flops=2.0 * site.results[0].size * math.prod(lhs.shape[d] for d in lhs_k),
    )


def ragged_dot_general(site: Site) -> Rule:
    """Batch, free and contracted dims as in ``dot_general``; the ragged dim and the groups are whole."""
    p = site.params["ragged_dot_dimension_numbers"]
    (lhs_k, rhs_k), (lhs_b, rhs_b) = p.dot_dimension_numbers
    lhs, rhs, sizes = site.operands[:3]
    ragged, groups = set(p.lhs_ragged_dimensions), set(p.rhs_group_dimensions)
    shared = len(sizes.shape) == 1  # one list of sizes for every batch entry
    f = Factors()
    ins: dict[int, tuple[int, ...]] = {}
    for d, n in enumerate(lhs.shape):
        if d in ragged or (not shared and d not in lhs_k):
            ins[d] = f.whole(f"m{d}", n)
        elif d in lhs_k:
            ins[d] = f.new(f"k{d}", n, Kind.REDUCTION if shared else Kind.WHOLE)
        else:
            ins[d] = f.new(f"b{d}" if d in lhs_b else f"m{d}", n)
    same = {r: ins[d] for d, r in (*zip(lhs_k, rhs_k, strict=True), *zip(lhs_b, rhs_b, strict=True))}
    weights = {
        d: same[d] if d in same else f.whole("g", n) if d in groups else f.new(f"n{d}", n)
        for d, n in enumerate(rhs.shape)
    }
    out = [
        *(ins[d] for d in lhs_b),
        *(ins[d] for d in range(len(lhs.shape)) if d not in lhs_k and d not in lhs_b),
        *(weights[d] for d in range(len(rhs.shape)) if d not in rhs_k and d not in rhs_b and d not in groups),
    ]
    count = sizes.shape[-1]
    if ragged & set(lhs_k):
        out = [f.whole("g", count), *out]
    others = [[f.whole("s", n) for n in v.shape] for v in site.operands[2:]]
    return f.rule(
        [[ins[d] for d in range(len(lhs.shape))], [weights[d] for d in range(len(rhs.shape))], *others],
        [out],
        linear_groups(site, (0,), (1,)),
        flops=2.0 * lhs.size * math.prod(n for d, n in enumerate(rhs.shape) if d not in same and d not in groups),
    )
