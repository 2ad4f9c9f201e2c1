"""Names of arguments, read as paths, so that the same leaf of repeated layers is said once.

>>> dotted(keys("state.params['layers'][3]['attn']['wq']"))
'state.params.layers[3].attn.wq'
>>> repeated("state.params.layers[3].attn.wq")
'state.params.layers[*].attn.wq'
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from autopar.paths import Keys, dotted, keys

_NUMBER = re.compile(r"(?<![:\d])\d+")  # not the number of a source line


def repeated(name: str) -> str:
    """The name with every number as ``*``: equal for the same leaf of different layers.

    >>> repeated("blocks_3/mlp/w1"), repeated("model.py:12 (loss)")
    ('blocks_*/mlp/w*', 'model.py:12 (loss)')
    """
    return _NUMBER.sub("*", name)


def merged(names: Sequence[str]) -> str:
    """One name for names that are :func:`repeated` alike: ``*`` only for the numbers that differ.

    >>> merged(["layers[0].w1", "layers[1].w1"])
    'layers[*].w1'
    """
    numbers = zip(*(_NUMBER.findall(n) for n in names), strict=True)
    kept = iter([found[0] if len(set(found)) == 1 else "*" for found in numbers])
    return _NUMBER.sub(lambda _: next(kept), names[0])


def shared_prefix(paths: Iterable[Keys]) -> Keys:
    """The keys that all paths begin with, leaving at least one key of each."""
    found = [p[:-1] for p in paths]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*found, strict=False))
    return tuple(column[0] for column in same)


__all__ = ["Keys", "dotted", "keys", "merged", "repeated", "shared_prefix"]
