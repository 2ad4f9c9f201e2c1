"""How a unit of a pipeline stage treats what its forward pass makes and its backward pass reads."""

from __future__ import annotations

from collections.abc import Sequence

NONE, ATTENTION, FULL = "none", "attention", "full"

REMATS = (NONE, ATTENTION, FULL)
"""``none`` keeps all of it; ``attention`` computes the cores of attention again, from queries and keys; ``full`` keeps
only what comes in or passes between units, and computes the rest again."""


def remat_text(remat: Sequence[str]) -> str:
    """What the units of a stage compute again, in words.

    >>> remat_text([FULL, ATTENTION, NONE]), remat_text([FULL, FULL]), remat_text([ATTENTION, NONE]), remat_text([])
    ('full in 1 of 3 units, attention only in 1', 'full', 'attention only in 1 of 2 units', '')
    """
    counts = [(word, remat.count(kind)) for word, kind in (("full", FULL), ("attention only", ATTENTION))]
    found = [(word, count) for word, count in counts if count]
    if len(found) == 1 and found[0][1] == len(remat):
        return found[0][0]
    said = [f"{word} in {count}" for word, count in found]
    if said:
        said[0] += f" of {len(remat)} units"
    return ", ".join(said)
