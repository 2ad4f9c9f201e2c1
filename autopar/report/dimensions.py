"""What some dims of arrays count: read from names and shapes, where these leave no doubt."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.plan import Argument

_ATTENTION = ("attn", "attention", "mha")
_VOCABULARY = ("wte", "embed", "embd", "vocab", "lm_head")
_POSITIONS = ("wpe", "pos")
_EXPERTS = ("expert", "moe")


def in_attention(a: Argument) -> bool:
    """Whether a name says that an array is of attention."""
    return _named(a, _ATTENTION)


def heads_dim(a: Argument) -> int | None:
    """Which dim of an array of attention counts heads; None if that is not certain.

    The model's dim is the largest, and it is first (to heads) or last (from heads) of three; heads lie before their
    own dim: ``[model, heads, head]`` and ``[heads, head, model]``, with or without a dim of stacked layers before.

    >>> heads_dim(Argument("layers[0].attn.wq", (4096, 32, 128), "float32", (1,), "parameter"))
    1
    """
    rank = len(a.shape)
    if rank not in (3, 4) or a.kind not in ("parameter", "optimizer") or not in_attention(a):
        return None
    first, _, last = a.shape[-3:]
    largest = max(a.shape[-3:])
    if first == last or largest not in (first, last) or (rank == 4 and a.shape[0] >= largest):
        return None
    return rank - (2 if first == largest else 3)


def vocabulary_dim(a: Argument) -> int | None:
    """Which dim of a table of embeddings, or of the head, counts tokens of the vocabulary: the larger by far.

    >>> vocabulary_dim(Argument("params.wte", (51200, 2048), "float32", (0,), "parameter"))
    0
    """
    if len(a.shape) != 2 or not _named(a, _VOCABULARY) or _named(a, _POSITIONS):
        return None
    rows, columns = a.shape
    return 0 if rows > 2 * columns else 1 if columns > 2 * rows else None


def is_expert(a: Argument, axis: int, exchanged: bool) -> bool:
    """Whether a mesh axis splits an array by experts: along the first dim of three or more.

    It is named so, or there is an all-to-all over the axis (``exchanged``) and the array is not one of attention.
    """
    by_name = _named(a, _EXPERTS)
    return len(a.shape) >= 3 and a.layout[axis] == 0 and (by_name or (exchanged and not in_attention(a)))


def _named(a: Argument, words: Sequence[str]) -> bool:
    return any(word in a.name.lower() for word in words)
