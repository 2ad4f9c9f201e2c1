"""Kernels and collectives that several units of a transformer have.

Compiled for a TPU, elementwise work costs no kernel of its own: activations, dropout and scaling are computed while a
matmul's operand is read or its result is written. What is left are sums over rows (norms) and the residual stream
itself, read and written at its additions.
"""

from __future__ import annotations

from autopar.prediction.setting import Setting
from autopar.prediction.sizes import BYTES, Sizes
from autopar.prediction.work import Cause, Exchange, Kernel, matmul, sweep
from autopar.sharding.layout import Collective

MASK_BYTES = 1  # of one dropped or kept number


def norm(sizes: Sizes, setting: Setting) -> Kernel:
    """Reads the stream and writes it normalised; both wait for the backward pass."""
    item, numbers = BYTES[sizes.dtype], setting.own_tokens(sizes.sequence) * sizes.hidden
    if setting.compiled:
        return sweep(numbers, item, 1, 0, 2, keeps=2 * item)
    return sweep(numbers, item, 1, 1, 3, keeps=2 * item)


def residual(sizes: Sizes, setting: Setting) -> Kernel:
    """Adds to the stream, after dropout where there is any; backward adds the gradients of both ways."""
    item, numbers = BYTES[sizes.dtype], setting.own_tokens(sizes.sequence) * sizes.hidden
    keeps = MASK_BYTES if sizes.dropout else 0
    if setting.compiled:
        return sweep(numbers, item, 1, 0, 1, keeps=keeps)
    mask = keeps / item
    return sweep(numbers, item, 2, 1 + mask, 3 + (2 + mask if sizes.dropout else 0), keeps=keeps)


def ffn_kernels(
    sizes: Sizes, setting: Setting, rows: float, parameters: float, count: float = 1, *, kept: bool = False
) -> tuple[Kernel, ...]:
    """Up, activation, down: of ``rows`` tokens; or ``count`` of them side by side, one for each expert.

    Args:
      sizes, setting: of the model, and of a device.
      rows: tokens.
      parameters: of one on all devices, two or three matrices.
      count: how many.
      kept: nothing before it keeps its input.
    """
    item, width = BYTES[sizes.dtype], sizes.width / setting.tensor
    up = round(parameters / (sizes.hidden * sizes.width)) - 1
    numbers, grown = rows * width * count, setting.gradient_bytes
    activation = (
        sweep(numbers, item, 0, 0, up, keeps=up * item)
        if setting.compiled
        else sweep(numbers, item, up, 1, 2 * up + 1, keeps=up * item)
    )
    return (
        matmul(rows, sizes.hidden, up * width, item, count=count, gradient_bytes=grown, kept=kept),
        activation,
        matmul(rows, width, sizes.hidden, item, count=count, gradient_bytes=grown),
    )


def into(sizes: Sizes, setting: Setting) -> tuple[Exchange, ...]:
    """Tokens are gathered before a region that tensor parallelism splits, if they were split."""
    if setting.tensor == 1 or not setting.sequence_parallel:
        return ()
    return (Exchange(Cause.TENSOR, Collective.ALL_GATHER, _stream_bytes(sizes, setting)),)


def out_of(sizes: Sizes, setting: Setting) -> tuple[Exchange, ...]:
    """Sums are added up after it."""
    if setting.tensor == 1:
        return ()
    kind = Collective.REDUCE_SCATTER if setting.sequence_parallel else Collective.ALL_REDUCE
    return (Exchange(Cause.TENSOR, kind, _stream_bytes(sizes, setting)),)


def _stream_bytes(sizes: Sizes, setting: Setting) -> float:
    return setting.tokens(sizes.sequence) * sizes.hidden * BYTES[sizes.dtype]
