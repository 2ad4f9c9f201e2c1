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
