"""A routed feed-forward as einsums dispatch it (GShard: Lepikhin et al. 2020, section 2.2 and algorithms 1 and 2).

Tokens are routed in groups. Of a group of S tokens each of E experts takes C = choices x capacity_factor x S / E, as
the routers of the zoo do. Per token:

    gate      a matmul of h x E; softmax, and for each choice a maximum, a mask and a running sum over E, in float32
    masks     combine and dispatch: E x C numbers each, written once, read by a matmul forward and by one backward
    dispatch  matmuls [E C, S] x [S, h] and back
    exchange  all-to-alls of E x C x h numbers, to the experts and back
    experts   feed-forwards of all slots, filled or not
"""

from __future__ import annotations

import math

from autopar.prediction.pieces import ffn_kernels, norm, residual
from autopar.prediction.setting import Setting
from autopar.prediction.sizes import BYTES, Sizes
from autopar.prediction.work import Cause, Exchange, Unit, matmul, sweep
from autopar.sharding.layout import Collective

_SOFTMAX, _CHOICE = 2, 5  # values of [tokens, experts] that go through memory


def capacity(sizes: Sizes, group: float) -> int:
    """Slots that an expert has for one group of tokens.

    >>> sizes = Sizes(hidden=8, layers=2, heads=1, sequence=8, vocab=8, experts=2048)
    >>> capacity(sizes, 512), capacity(sizes, 1024), capacity(sizes, 8192)
    (1, 1, 8)
    """
    return max(1, math.floor(sizes.choices * sizes.capacity_factor * group / sizes.experts))


def routed(sizes: Sizes, setting: Setting) -> Unit:
    """Norm, gate, dispatch, experts, combine, residual."""
    item, h, experts, tokens = BYTES[sizes.dtype], sizes.hidden, sizes.experts, setting.tokens(sizes.sequence)
    group = min(sizes.group or tokens, tokens)
    groups, slots = tokens / group, capacity(sizes, group)
    rows = groups * slots * setting.expert
    gate = _SOFTMAX + _CHOICE * sizes.choices
    kernels = (
        norm(sizes, setting),
        matmul(tokens, h, experts, 4, kept=False),
        sweep(tokens * experts, 4, gate / 2, gate / 2, gate / 2, keeps=4),
        sweep(tokens * experts * slots, item, 0, 2, 2, keeps=2 * item),
        matmul(experts * slots, group, h, item, count=groups, kept=False),
        *ffn_kernels(sizes, setting, rows, sizes.expert_parameters, experts / setting.expert, kept=True),
        matmul(group, experts * slots, h, item, count=groups, kept=False),
        residual(sizes, setting),
    )
    nbytes = groups * experts * slots * h * item
    exchanges: tuple[Exchange, ...] = ()
    if setting.expert > 1:
        exchanges += (Exchange(Cause.EXPERT, Collective.ALL_TO_ALL, nbytes),) * 2
    if setting.tensor > 1:
        exchanges += (Exchange(Cause.TENSOR, Collective.ALL_REDUCE, nbytes),)
    return Unit(
        "experts",
        kernels,
        exchanges,
        exchanges,
        parameters=h * experts,
        expert_parameters=experts / setting.expert * sizes.expert_parameters / setting.tensor,
        output_bytes=tokens * h * item,
    )
