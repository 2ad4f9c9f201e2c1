"""What a user knows better than the planner, about the part of a model that a pattern names.

=====================================  ============================================================================
text                                   the plan
=====================================  ============================================================================
``wte: whole``                         keeps a copy of the array on every device
``mlp.w1: columns over y``             splits it so: ``rows``, ``columns``, or of any dim ``dim 2 over y``
``state.params['w']: S1,R``            or in placements, one per mesh axis: dim 1 is split over the first
``attn: forbid tensor``                has no tensor parallelism in that part; ``no tensor parallelism`` says the same
``moe: require expert over y``         splits every expert layer of that part by experts, over mesh axis ``y``
``layers[12]: stage``                  begins a stage of the pipeline there
``layers[12]: mesh 2x4``               gives the stage that holds it a mesh of that shape
=====================================  ============================================================================

Patterns name arguments by their paths, in any spelling (:mod:`autopar.paths`), and ops by their ``named_scope``, by
their source line (``model.py:12``) or their function; ``attn()`` means ops alone. A pattern that finds parameters means
these; their optimizer state has names of its own (``mu.wte``). A layout of a part that is ops is that of what other ops
read of it.

The parallelisms, of an op along a mesh axis:

========== =================================================================================================
``data``    it splits what lies along the examples of the batch
``expert``  it splits what lies along the experts of a parameter
``tensor``  it splits anything else
``zero``    a parameter or its optimizer state is stored in more parts than it is used in (ZeRO, FSDP)
========== =================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopar.errors import OptionError, nearest
from autopar.sharding.words import is_layout

PARALLELISMS = ("data", "expert", "tensor", "zero")
KINDS = ("layout", "forbid", "require", "stage", "mesh")

_PARALLEL = re.compile(r"(forbid|no|require) (\w+)(?: parallelism)?(?: over (\w+(?: and \w+)*))?")
_EXAMPLES = (
    "'wte: whole', 'mlp.w1: columns over y', 'w: S0,R', 'attn: forbid tensor', 'moe: require expert over y', "
    "'layers[12]: stage' or 'layers[12]: mesh 2x4'"
)


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint: what a plan must do in one part of the model. Made by the methods below, or by :meth:`parse`.

    Attributes:
      kind: ``layout``, ``forbid``, ``require``, ``stage`` or ``mesh``.
      part: pattern of the names of arguments or scopes.
      words: a layout (``columns over y``, ``S0,R``), a parallelism (``tensor``) or a mesh shape (``2x4``).
      over: names of mesh axes that a parallelism is about; none are all.

    >>> Hint.layout("wte", "whole"), str(Hint.forbid("attn", "tensor"))
    (Hint(kind='layout', part='wte', words='whole', over=()), 'attn: forbid tensor')
    """

    kind: str
    part: str
    words: str = ""
    over: tuple[str, ...] = ()

    @staticmethod
    def layout(part: str, words: str) -> Hint:
        """An array, or what a part of the model hands out, lies like this.

        Args:
          part: pattern of its name.
          words: ``whole``, ``rows over x``, ``columns over x and y``, ``dim 2 over y``, several of them joined by
            commas; or one placement per mesh axis, such as ``S0,R``.

        Raises:
          OptionError: the words are no layout.
        """
        return _checked(Hint("layout", part, words))

    @staticmethod
    def forbid(part: str, parallelism: str, *, over: str | Sequence[str] = ()) -> Hint:
        """No such parallelism in a part of the model.

        Args:
          part: pattern of its name.
          parallelism: ``data``, ``expert``, ``tensor`` or ``zero``.
          over: names of mesh axes; none are all.

        Raises:
          OptionError: there is no such parallelism.
        """
        return _checked(Hint("forbid", part, parallelism, _names(over)))

    @staticmethod
    def require(part: str, parallelism: str, *, over: str | Sequence[str] = ()) -> Hint:
        """Such a parallelism in every op of a part that can have it, over each of the axes named, or over any.

        Args:
          part, parallelism, over: as of :meth:`forbid`.

        Raises:
          OptionError: there is no such parallelism.
        """
        return _checked(Hint("require", part, parallelism, _names(over)))

    @staticmethod
    def stage(part: str) -> Hint:
        """A stage of the pipeline begins where a part of the model begins.

        Args:
          part: its name, in any spelling.
        """
        return _checked(Hint("stage", part))

    @staticmethod
    def mesh(part: str, shape: Sequence[int]) -> Hint:
        """The stage that holds a part of the model has a mesh of this shape.

        Args:
          part: its name, in any spelling.
          shape: devices along each axis.

        Raises:
          OptionError: the shape is not made of positive whole numbers.
        """
        return _checked(Hint("mesh", part, "x".join(map(str, shape))))

    @classmethod
    def parse(cls, text: str) -> Hint:
        """The hint that a text stands for; ``str`` is the inverse.

        Args:
          text: the part of the model, a colon, and what is asked of it.

        >>> Hint.parse("moe: require expert over y")
        Hint(kind='require', part='moe', words='expert', over=('y',))
        >>> str(Hint.parse("attn: no tensor parallelism"))
        'attn: forbid tensor'

        Raises:
          OptionError: it is no hint.
        """
        separator = ": " if ": " in text else ":"
        part, found, what = text.rpartition(separator)
        if not found or not part.strip() or not what.strip():
            raise OptionError(
                f"hint {text!r} is not a pattern and what to do there, joined by ': '. Write {_EXAMPLES}."
            )
        return cls.of(part.strip(), what.strip())

    @staticmethod
    def of(part: str, what: str) -> Hint:
        """A hint from its two sides.

        Args:
          part: of the model, by its name.
          what: is asked of it.

        >>> Hint.of("layers[12]", "stage")
        Hint(kind='stage', part='layers[12]', words='', over=())

        Raises:
          OptionError: the second makes no sense.
        """
        parallel = _PARALLEL.fullmatch(what)
        if parallel:
            kind = "forbid" if parallel[1] == "no" else parallel[1]
            return _checked(Hint(kind, part, parallel[2], _names(parallel[3] or ())))
        if what in ("stage", "begins a stage"):
            return Hint("stage", part)
        if what.startswith("mesh "):
            return _checked(Hint("mesh", part, what.removeprefix("mesh ").strip()))
        return _checked(Hint("layout", part, what))

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Of a mesh hint, the shape."""
        return tuple(map(int, self.words.split("x")))

    def __str__(self) -> str:
        if self.kind == "stage":
            return f"{self.part}: stage"
        what = self.words if self.kind == "layout" else f"{self.kind} {self.words}"
        return f"{self.part}: {what}{' over ' + ' and '.join(self.over) if self.over else ''}"


def as_hints(given: Any) -> tuple[Hint, ...]:
    """Hints as a user gives them: texts and hints, or a mapping from patterns to what to do there.

    >>> as_hints({"state['w']": "S0"}) == as_hints(["state['w']: S0"]) == as_hints([Hint.layout("state['w']", "S0")])
    True

    Raises:
      OptionError: they are something else.
    """
    if isinstance(given, Mapping) and all(isinstance(x, str) for item in given.items() for x in item):
        return tuple(dict.fromkeys(Hint.of(part, what) for part, what in given.items()))
    if isinstance(given, str | Hint):
        given = (given,)
    if isinstance(given, Sequence) and all(isinstance(x, str | Hint) for x in given):
        return tuple(dict.fromkeys(x if isinstance(x, Hint) else Hint.parse(x) for x in given))
    raise OptionError(
        "hints must map argument paths to layouts, such as {\"params['w']\": 'S0'} for a mesh of one axis, or be texts "
        f"such as {_EXAMPLES}; found {given!r}."
    )


def _names(over: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(over.split(" and ")) if isinstance(over, str) else tuple(over)


def _checked(hint: Hint) -> Hint:
    """The hint.

    Raises:
      OptionError: its words make no sense.
    """
    if not isinstance(hint.part, str) or not hint.part.strip():
        raise OptionError(f"a hint needs the pattern of a name; found {hint.part!r}.")
    if hint.kind in ("forbid", "require") and hint.words not in PARALLELISMS:
        known = nearest(str(hint.words), PARALLELISMS)
        raise OptionError(f"hint '{hint}': there is no parallelism {hint.words!r}: {known}")
    if hint.kind == "mesh" and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", hint.words):
        raise OptionError(
            f"hint '{hint}': {hint.words!r} is not a mesh shape; write axis sizes joined by x, such as 2x4."
        )
    if hint.kind == "layout" and not is_layout(hint.words):
        raise OptionError(
            f"hint {hint.part!r}: {hint.words!r} is not a layout. Write one placement per mesh axis: S0 splits dim 0 "
            "over it, R copies; 'S0,R' for a mesh of two axes; or words: 'whole', 'rows over x', 'dim 2 over x and y'. "
            f"Other hints: {_EXAMPLES}."
        )
    return hint


__all__ = ["KINDS", "PARALLELISMS", "Hint", "as_hints"]
