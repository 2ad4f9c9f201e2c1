"""Gather and scatter. An indexed dim is split by masking: each device serves the indices that fall on its part.

Gather from a split dim leaves zeros where the index is another device's, so the result is a partial sum.
Scatter into a split dim drops the updates of other devices, so the result is split like the operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopar.ir import Kind, Reduce, Rule
from autopar.sharding.rules.site import FLOATS, Factors, Site, letter, linear_groups, opaque_rule, summable

Dim = tuple[int, ...]
MODES = frozenset({"CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"})


def mode_name(mode: Any) -> str:
    """``CLIP``, ``FILL_OR_DROP`` or ``PROMISE_IN_BOUNDS``; None, jax's default, is ``FILL_OR_DROP``."""
    return "FILL_OR_DROP" if mode is None else str(getattr(mode, "name", mode)).upper()


def gather(site: Site) -> Rule:
    """``v d, b s 1 -> b s d``: v is summed by masked lookup; b, s and dims taken in full are parallel."""
    if mode_name(site.params["mode"]) not in MODES:
        return opaque_rule(site)
    x, indices = site.operands
    out = site.results[0]
    p, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    paired = dict(zip(p.operand_batching_dims, p.start_indices_batching_dims, strict=True))
    f = Factors()
    batch = [f.new(f"b{i}", n) for i, n in enumerate(indices.shape[:-1])]
    offsets = iter(sorted(p.offset_dims))
    outs: dict[int, Dim] = {}
    ins: list[Dim] = []
    for d, n in enumerate(x.shape):
        if d in paired:
            ins.append(batch[paired[d]])
        elif d in p.collapsed_slice_dims:
            ins.append(_looked_up(f, f"v{d}", n, x.dtype) if d in p.start_index_map else f.whole(f"v{d}", n))
        elif sizes[d] == n:
            ins.append(f.new(letter(d), n))
            outs[next(offsets)] = ins[-1]
        else:
            ins.append(f.whole(letter(d), n))
            outs[next(offsets)] = f.whole(f"{letter(d)}_out", sizes[d])
    rest = iter(batch)
    result = [outs[d] if d in outs else next(rest) for d in range(len(out.shape))]
    groups = linear_groups(site, (0,)) if _fills_linearly(site) else ()
    return f.rule([ins, [*batch, f.whole("index", indices.shape[-1])]], [result], groups)


def _looked_up(f: Factors, name: str, size: int, dtype: str) -> Dim:
    if dtype == "bool":
        return f.new(name, size, Kind.REDUCTION, Reduce.MAX)
    return f.new(name, size, Kind.REDUCTION if summable(dtype) else Kind.WHOLE)


def _fills_linearly(site: Site) -> bool:
    """Whether adding up partial gathers keeps what stands for an index out of bounds (0 and nan do)."""
    fill = site.params["fill_value"]
    if mode_name(site.params["mode"]) != "FILL_OR_DROP":
        return True
    if fill is None:
        return site.operands[0].dtype in FLOATS
    return bool(fill == 0 or fill != fill)


def scatter(sums: bool = False, linear: tuple[int, ...] = ()) -> Callable[[Site], Rule]:
    """A builder for a scatter: ``v d, b s 1, b s d -> v d``.

    Args:
      sums: updates are added (or subtracted), so their batch dims may be split; the operand is an accumulator.
      linear: operands in which it is jointly linear.
    """

    def build(site: Site) -> Rule:
        if mode_name(site.params["mode"]) not in MODES:
            return opaque_rule(site)
        x, indices, updates = site.operands
        p = site.params["dimension_numbers"]
        paired = dict(zip(p.operand_batching_dims, p.scatter_indices_batching_dims, strict=True))
        f = Factors()
        split = sums and summable(x.dtype)
        kinds = dict.fromkeys(paired.values(), Kind.PARALLEL)
        loose = Kind.REDUCTION if split else Kind.WHOLE
        batch = [f.new(f"b{i}", n, kinds.get(i, loose)) for i, n in enumerate(indices.shape[:-1])]
        windows = iter(sorted(p.update_window_dims))
        parts: dict[int, Dim] = {}
        ins: list[Dim] = []
        for d, n in enumerate(x.shape):
            if d in paired:
                ins.append(batch[paired[d]])
            elif d in p.inserted_window_dims:
                indexed = d in p.scatter_dims_to_operand_dims
                ins.append(f.new(f"v{d}", n, Kind.PARALLEL if indexed else Kind.WHOLE))
            else:
                w = next(windows)
                full = updates.shape[w] == n
                ins.append(f.new(letter(d), n, Kind.PARALLEL if full else Kind.WHOLE))
                parts[w] = ins[-1] if full else f.whole(f"{letter(d)}_new", updates.shape[w])
        rest = iter(batch)
        news = [parts[d] if d in parts else next(rest) for d in range(len(updates.shape))]
        groups = linear_groups(site, linear) if _plain(site) else ()
        index = [*batch, f.whole("index", indices.shape[-1])]
        return f.rule([ins, index, news], [ins], groups, (0,) if split else (), flops=updates.size)

    return build


def _plain(site: Site) -> bool:
    """Whether ``scatter`` overwrites: ``scatter_apply`` is the same primitive with a function of the old value."""
    jaxpr = site.params.get("update_jaxpr")
    if site.primitive != "scatter" or jaxpr is None:
        return True
    return not jaxpr.eqns and jaxpr.outvars[0] is jaxpr.invars[1]
