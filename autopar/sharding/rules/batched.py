"""Primitives that treat leading dims as a batch: Fourier transforms and linear algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autopar.ir import Rule
from autopar.sharding.rules.site import Factors, Site, letter, linear_groups, opaque_rule


def batched(core: int = 2, linear: Iterable[int] = (), flops: float = 1.0) -> Callable[[Site], Rule]:
    """A builder for a primitive on matrices or vectors: leading dims are parallel, the others whole.

    Args:
      core: how many trailing dims of operand 0 belong to one problem.
      linear: operands in which it is jointly linear.
      flops: times (elements of operand 0) times (size of its last dim).
    """

    def build(site: Site) -> Rule:
        x = site.operands[0]
        return _leading(site, len(x.shape) - core, tuple(linear), flops * x.size * x.shape[-1])

    return build


def _leading(site: Site, count: int, linear: tuple[int, ...], flops: float) -> Rule:
    lead = site.operands[0].shape[:count]
    if any(v.shape[:count] != lead for v in (*site.operands, *site.results)):
        return opaque_rule(site)
    f = Factors()
    shared = [f.new(letter(d), n) for d, n in enumerate(lead)]
    ins = [[*shared, *(f.whole(f"x{i}", n) for n in v.shape[count:])] for i, v in enumerate(site.operands)]
    outs = [[*shared, *(f.whole(f"y{i}", n) for n in v.shape[count:])] for i, v in enumerate(site.results)]
    return f.rule(ins, outs, linear_groups(site, linear), flops=flops)


def fft(site: Site) -> Rule:
    """Transformed dims are whole. FLOPs: 5 N log2 N per transform (the radix-2 count of FFTW's benchmarks)."""
    x = site.operands[0]
    lengths = site.params["fft_lengths"]
    points = max(x.size, site.results[0].size)
    bits = sum(max(n - 1, 1).bit_length() for n in lengths)
    return _leading(site, len(x.shape) - len(lengths), (0,), 5.0 * points * bits)
