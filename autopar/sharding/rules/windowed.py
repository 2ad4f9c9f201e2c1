"""Convolutions and window reductions: a spatial dim is split where shards align, with a halo from the neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autopar.ir import Kind, Rule
from autopar.sharding.halo import Window
from autopar.sharding.rules.site import Factors, Site, letter, linear_groups, summable

Dim = tuple[int, ...]


def spatial(f: Factors, name: str, points: int, made: int, window: Window) -> tuple[Dim, Dim]:
    """The dim of the operand and of the result along which ``window`` slides.

    Where their sizes differ by stride or dilation, the shared factor is the common divisor and the rest is a
    whole minor factor on either side.
    """
    shared = math.gcd(points, made)
    halo = window.halo
    # A halo wider than half the dim costs more than keeping it whole.
    if not window.aligns(points, made) or max(halo) > points // 2:
        return f.whole(name, points), f.whole(f"{name}_out", made)
    factor = f.new(name, shared, Kind.HALO if any(halo) else Kind.PARALLEL, halo=halo)
    return factor + f.whole(f"{name}_in", points // shared), factor + f.whole(f"{name}_out", made // shared)


def conv_windows(site: Site) -> list[Window]:
    """The window of each spatial dim of a convolution."""
    p = site.params
    taps = [site.operands[1].shape[d] for d in p["dimension_numbers"].rhs_spec[2:]]
    columns = zip(taps, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"], strict=True)
    return [Window(t, stride, pad[0], base, spread) for t, stride, pad, base, spread in columns]


def conv_general_dilated(site: Site) -> Rule:
    """``n (g c) h w, (g o) c kh kw -> n (g o) h w``: n, o parallel, c summed, groups g parallel, h and w halo.

    ``batch_group_count`` puts the groups before n instead of before c. FLOPs: two per multiply-add,
    padding included, zeros that dilate the operand left out.
    """
    lhs, rhs = site.operands
    out = site.results[0]
    dims = site.params["dimension_numbers"]
    features, batches = site.params["feature_group_count"], site.params["batch_group_count"]
    f = Factors()
    group = f.new("g", max(features, batches))
    n = f.new("n", out.shape[dims.out_spec[0]])
    o = f.new("o", out.shape[dims.out_spec[1]] // max(features, batches))
    c = f.new("c", rhs.shape[dims.rhs_spec[1]], Kind.REDUCTION if summable(out.dtype) else Kind.WHOLE)
    by_feature, by_batch = (group, ()) if features > 1 else ((), group)
    ins: dict[int, Dim] = {dims.lhs_spec[0]: by_batch + n, dims.lhs_spec[1]: by_feature + c}
    weights: dict[int, Dim] = {dims.rhs_spec[0]: group + o, dims.rhs_spec[1]: c}
    outs: dict[int, Dim] = {dims.out_spec[0]: n, dims.out_spec[1]: group + o}
    names = "hwdefg" if len(dims.lhs_spec) > 3 else "h"
    for i, window in enumerate(conv_windows(site)):
        x, k, y = dims.lhs_spec[i + 2], dims.rhs_spec[i + 2], dims.out_spec[i + 2]
        ins[x], outs[y] = spatial(f, names[i], lhs.shape[x], out.shape[y], window)
        weights[k] = f.whole(f"k{names[i]}", rhs.shape[k])
    taps = math.prod(rhs.shape[d] for d in dims.rhs_spec[1:]) / math.prod(site.params["lhs_dilation"])
    tensors = [[side[d] for d in range(len(side))] for side in (ins, weights, outs)]
    return f.rule(tensors[:2], tensors[2:], linear_groups(site, (0,), (1,)), flops=2.0 * out.size * taps)


def pool_windows(site: Site) -> list[Window]:
    """The window of each dim of a window reduction."""
    p = site.params
    ones = (1,) * len(p["window_dimensions"])
    return [
        Window(taps, stride, pad[0], base, spread)
        for taps, stride, pad, base, spread in zip(
            p["window_dimensions"],
            p["window_strides"],
            p["padding"],
            p.get("base_dilation", ones),
            p.get("window_dilation", ones),
            strict=True,
        )
    ]


def reduce_window(linear: bool = False) -> Callable[[Site], Rule]:
    """A builder for a reduction over windows of one operand.

    Args:
      linear: whether partial sums pass.
    """

    def build(site: Site) -> Rule:
        # Of several operands only operand 0 could have its halo: all dims under a real window are whole then.
        several = len(site.results) > 1
        ins, outs, f = _pooled(site, site.operands[0].shape, site.results[0].shape, several)
        scalars = [()] * (len(site.operands) - len(site.results))
        flops = site.results[0].size * math.prod(site.params["window_dimensions"])
        return f.rule(
            [*[ins] * len(site.results), *scalars],
            [outs] * len(site.results),
            linear_groups(site, (0,)) if linear else (),
            flops=flops,
        )

    return build


def _pooled(
    site: Site, points: Sequence[int], made: Sequence[int], disjoint: bool
) -> tuple[list[Dim], list[Dim], Factors]:
    """Dims of the wide and of the pooled tensor. ``disjoint``: only windows that do not overlap are split."""
    f = Factors()
    ins, outs = [], []
    for d, (n, m, window) in enumerate(zip(points, made, pool_windows(site), strict=True)):
        name = letter(d)
        exact = window.low == 0 and window.taps <= window.stride
        if disjoint and not exact:
            ins.append(f.whole(name, n))
            outs.append(f.whole(f"{name}_out", m))
        else:
            wide, narrow = spatial(f, name, n, m, window)
            ins.append(wide)
            outs.append(narrow)
    return ins, outs, f


def select_and_scatter_add(site: Site) -> Rule:
    """The gradient of max pooling: windows that do not overlap are parallel, others whole."""
    source, x = site.operands
    wide, narrow, f = _pooled(site, x.shape, source.shape, disjoint=True)
    return f.rule([narrow, wide], [wide], linear_groups(site, (0,)), flops=2.0 * x.size)


def select_and_gather_add(site: Site) -> Rule:
    """The tangent of max pooling: windows that do not overlap are parallel, others whole."""
    tangents, _ = site.operands
    wide, narrow, f = _pooled(site, tangents.shape, site.results[0].shape, disjoint=True)
    return f.rule([wide, wide], [narrow], linear_groups(site, (0,)), flops=2.0 * tangents.size)
