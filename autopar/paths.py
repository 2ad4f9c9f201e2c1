"""Names of arguments and scopes, read as paths, and the patterns that people write for them.

One name has many spellings: jax writes ``state.params['layers'][3]['attn']['wq']``, pages ``layers[3].attn.wq``, flax's
scopes ``layer_3/attn/wq``. A pattern in any of them finds a name in any other, if its keys are a run of the name's:

>>> named("layer3/attn/wq", "state.params['layers'][3]['attn']['wq']")
True
>>> named("layers[*].attn", "state.params['layers'][3]['attn']['wq']"), named("attn/w", "block_3/attn/wq")
(True, False)
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Sequence

_KEY = re.compile(r"""\[(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\]|(\[[^\]]*\])|\.?([^.\[\]]+)""")
_NUMBERED = re.compile(r"(.*[A-Za-z])_?(\d+)")

Keys = tuple[str, ...]


def keys(name: str) -> Keys:
    """A path's keys; positions in sequences stay in brackets.

    >>> keys("state.opt_state[1][0].mu['wte']")
    ('state', 'opt_state', '[1]', '[0]', 'mu', 'wte')
    """
    return tuple(next(g for g in m.groups() if g is not None) for m in _KEY.finditer(name))


def dotted(path: Sequence[str]) -> str:
    """Keys as one name, without quotes.

    >>> dotted(keys("state.params['layers'][3]['attn']['wq']"))
    'state.params.layers[3].attn.wq'
    """
    text = "".join(k if k.startswith("[") else f".{k}" for k in path)
    return text.removeprefix(".")


@functools.lru_cache(maxsize=100_000)
def words(name: str) -> Keys:
    """The words of a path in any spelling.

    >>> words("state.params['layers'][3]"), words("layer_3/attn")
    (('state', 'params', 'layers', '3'), ('layer_3', 'attn'))
    """
    return tuple(word for key in keys(name) for word in key.strip("[]").split("/") if word)


def named(pattern: str, name: str) -> bool:
    """Whether a pattern names an array or scope, or a part of the model that it belongs to.

    A pattern is a run of the name's keys, in any spelling, or the whole name as a shell pattern (``state*w1*``). ``*``
    and ``?`` stand for what they do in the shell. A number may stand apart from its word or at its end, and the word
    may be in the plural: ``layers[3]``, ``layer_3`` and ``layer3`` are one.

    Args:
      pattern: as written by a person.
      name: of an argument or a scope.
    """
    return pattern == name or fnmatch.fnmatchcase(name, pattern) or bool(_regex(pattern).search(".".join(words(name))))


@functools.lru_cache(maxsize=1_000)
def _regex(pattern: str) -> re.Pattern[str]:
    pieces: list[tuple[str, str]] = []  # word, and the number that goes with it
    for word in words(pattern):
        numbered = _NUMBERED.fullmatch(word)
        if numbered:
            pieces.append((numbered[1], numbered[2]))
        elif pieces and not pieces[-1][1] and (word.isdecimal() or word == "*"):
            pieces[-1] = (pieces[-1][0], word)
        else:
            pieces.append((word, ""))
    run = r"\.".join(_piece(word, number) for word, number in pieces)
    return re.compile(rf"(?:^|\.){run}(?:\.|$)" if run else r"(?!)")


def _piece(word: str, number: str) -> str:
    if not number:
        return _glob(word)
    stem = _glob(word.removesuffix("s"))
    return rf"{stem}s?(?:[._]?\d+|\.[^.]+)" if number == "*" else rf"{stem}s?[._]?{number}"


def _glob(word: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in word)


__all__ = ["Keys", "dotted", "keys", "named", "words"]
