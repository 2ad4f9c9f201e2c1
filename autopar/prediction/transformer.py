"""The units of a transformer on one of t devices that share its matmuls (Shoeybi 2019, Korthikanti et al. 2022).

Per token of width h, forward:

    norm         reads and writes h                                       (h / t with sequence parallelism)
    projections  matmuls of h x (queries, keys, values) / t and back; two or three of h x ffn / t
    core         scores, softmax, dropout, weighted sum over heads x sequence / t numbers
    residual     reads two and writes one of h                            (h / t with sequence parallelism)
    collectives  an all-reduce of h before each residual; with sequence parallelism an all-gather before the
                 projections and a reduce-scatter after them

The backward pass has two matmuls for each one and as many collectives. With sequence parallelism it gathers inputs once
more for the gradients of weights, which hides behind a matmul (Korthikanti et al., section 4.2.2) and is not priced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autopar.prediction.experts import routed
from autopar.prediction.pieces import MASK_BYTES, ffn_kernels, into, norm, out_of, residual
from autopar.prediction.setting import Setting
from autopar.prediction.sizes import BYTES, Sizes
from autopar.prediction.work import Cause, Kernel, Unit, matmul, sweep

_TABLE_BYTES = 8  # gradients are added to rows of a table in float32


def transformer(sizes: Sizes, setting: Setting) -> tuple[Unit, ...]:
    """Every unit, first to last."""
    return tuple(_units(sizes, setting))


def _units(sizes: Sizes, setting: Setting) -> Iterator[Unit]:
    dense, expert = _feed_forward(sizes, setting), routed(sizes, setting) if sizes.experts else None
    yield _embedding(sizes, setting, sizes.source_vocab or sizes.vocab)
    for layer in range(sizes.layers):
        decodes = layer >= sizes.encoder_layers
        if decodes and layer and layer == sizes.encoder_layers and sizes.source_vocab:
            yield _embedding(sizes, setting, sizes.vocab)
        yield _attention(sizes, setting, causal=sizes.causal and decodes)
        if decodes and sizes.encoder_layers:
            yield replace(_attention(sizes, setting, causal=False), name="cross-attention", starts=False)
        yield expert if expert is not None and sizes.routed(layer) else dense
    yield _head(sizes, setting)


def _attention(sizes: Sizes, setting: Setting, *, causal: bool) -> Unit:
    """Norm, projections, the core, and the residual."""
    item, t, h = BYTES[sizes.dtype], setting.tensor, sizes.hidden
    tokens, grown = setting.tokens(sizes.sequence), setting.gradient_bytes
    queries, kv = sizes.heads * sizes.head_size / t, max(sizes.kv / t, 1) * sizes.head_size
    kernels = (
        norm(sizes, setting),
        matmul(tokens, h, queries + 2 * kv, item, gradient_bytes=grown, kept=False),
        *_core(sizes, setting, causal=causal),
        matmul(tokens, queries, h, item, gradient_bytes=grown),
        residual(sizes, setting),
    )
    # Side by side with a feed-forward, both share that one's collectives.
    enter, leave = ((), ()) if sizes.one_norm else (into(sizes, setting), out_of(sizes, setting))
    return Unit(
        "attention",
        kernels,
        (*enter, *leave),
        (*enter, *leave),
        parameters=h * (2 * queries + 2 * kv),
        starts=True,
        input_bytes=setting.own_tokens(sizes.sequence) * h * item,
        output_bytes=tokens * h * item,
    )


def _core(sizes: Sizes, setting: Setting, *, causal: bool) -> Iterator[Kernel]:
    item, t, seq, head = BYTES[sizes.dtype], setting.tensor, sizes.sequence, sizes.head_size
    heads, kv, tokens = sizes.heads / t, max(sizes.kv / t, 1), setting.tokens(sizes.sequence)
    scores, read = tokens * heads * seq, 2 if setting.compiled else item
    if setting.attention == "flash":
        # Five products backward for two forward, for scores are made again; what the mask hides is skipped (Dao 2023).
        flops, streams = 4 * scores * head * (0.5 if causal else 1), tokens * head * item
        moved = streams * (heads + 2 * kv)
        yield Kernel(
            Cause.ATTENTION, flops, moved, streams * heads, 2.5 * flops, 2 * moved, moved, 1, moved + streams * heads
        )
        return
    dropped = MASK_BYTES if sizes.dropout else 0
    yield matmul(
        seq, head, seq, item, count=tokens / seq * heads, read_item=read, cause=Cause.ATTENTION, core=True, kept=False
    )
    if setting.compiled:
        # A row's maximum and sum, then its weights, which only a matmul reads: stored as it reads them, in 16 bits.
        yield sweep(scores, 1, 2 * item, read, 2 * item + 3 * read, keeps=read + dropped, core=True)
    else:
        yield sweep(scores, item, 1, 1, 3, keeps=item + dropped, core=True)
    if sizes.dropout and not setting.compiled:
        mask = MASK_BYTES / item
        yield sweep(scores, item, 1, 1 + mask, 2 + mask, keeps=item, core=True)
    yield matmul(
        seq, seq, head, item, count=tokens / seq * heads, read_item=read, cause=Cause.ATTENTION, core=True, kept=False
    )
    yield Kernel(Cause.MEMORY, kept_bytes=tokens * head * (heads + 2 * kv) * item)  # queries, keys and values wait


def _feed_forward(sizes: Sizes, setting: Setting) -> Unit:
    kernels = ffn_kernels(sizes, setting, setting.tokens(sizes.sequence), sizes.ffn_parameters)
    if not sizes.one_norm:
        kernels = (norm(sizes, setting), *kernels, residual(sizes, setting))
    collectives = (*into(sizes, setting), *out_of(sizes, setting))
    return Unit(
        "feed-forward",
        kernels,
        collectives,
        collectives,
        parameters=sizes.ffn_parameters / setting.tensor,
        output_bytes=setting.tokens(sizes.sequence) * sizes.hidden * BYTES[sizes.dtype],
    )


def _embedding(sizes: Sizes, setting: Setting, vocab: int) -> Unit:
    item, numbers = BYTES[sizes.dtype], setting.tokens(sizes.sequence) * sizes.hidden
    rows = vocab / setting.tensor + sizes.positions
    return Unit(
        "embedding",
        (sweep(numbers, item, 1, 1, 1 + _TABLE_BYTES / item),),
        out_of(sizes, setting),
        into(sizes, setting),
        parameters=rows * sizes.hidden,
        output_bytes=numbers * item,
    )


def _head(sizes: Sizes, setting: Setting) -> Unit:
    """Norm, logits and cross-entropy, which is taken in float32.

    Compiled, the loss reads logits twice forward (maximum, sum), and reads and writes them once backward. In kernels of
    their own (PyTorch's) they are copied to float32, then each of maximum, difference, exponential, sum and quotient
    goes over them; backward, the gradient is copied and written in 16 bits.
    """
    item, tokens, columns = BYTES[sizes.dtype], setting.tokens(sizes.sequence), sizes.vocab / setting.tensor
    if setting.compiled:
        loss = sweep(tokens * columns, item, 2, 0, 2, keeps=4 + item)
    else:
        loss = sweep(tokens * columns, 1, item + 20, 16, 12 + item, keeps=4 + item)
    product = matmul(tokens, sizes.hidden, columns, item, gradient_bytes=setting.gradient_bytes, kept=False)
    return Unit(
        "head",
        (norm(sizes, setting), product, loss),
        into(sizes, setting),
        out_of(sizes, setting),
        parameters=columns * sizes.hidden,
        last=True,
    )
