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


def part_of(name: str) -> str:
    """The part of a model that a dotted name is of: its layer, or what is above it.

    >>> part_of("layers[*].attn.wk"), part_of("ln_f.scale"), part_of("wte")
    ('layers', 'ln_f', 'wte')
    """
    return name.partition("[*].")[0] if "[*]." in name else name.rpartition(".")[0] or name


def braced(names: Sequence[str], most: int = 5) -> str:
    """Dotted names as one, what they begin with said once.

    >>> braced(["layers[*].attn.wk", "layers[*].attn.wq"]), braced(["a.b", "a.c.d"], most=1), braced(["wte"])
    ('layers[*].attn.{wk, wq}', 'a.{b, and 1 more}', 'wte')
    """
    if len(names) == 1:
        return names[0]
    paths = [tuple(name.split(".")) for name in names]
    same = shared_prefix(paths)
    rest = [".".join(path[len(same) :]) for path in paths]
    shown = rest[:most] + ([f"and {len(rest) - most} more"] if len(rest) > most else [])
    return ".".join((*same, "{" + ", ".join(shown) + "}"))


def shared_prefix(paths: Iterable[Keys]) -> Keys:
    """The keys that all paths begin with, leaving at least one key of each."""
    found = [p[:-1] for p in paths]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*found, strict=False))
    return tuple(column[0] for column in same)


__all__ = ["Keys", "dotted", "keys", "merged", "repeated", "shared_prefix"]
