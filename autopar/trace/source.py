"""Where an equation comes from: the user's line, the call stack, the named scopes, the phase.

jax keeps a Python traceback and a name stack per equation. A graph has tens of thousands of them, so
everything here is remembered per traceback, per code object and per name stack.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import os
import sysconfig
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from autopar.ir import Where

_JAX = os.path.dirname(jax.__file__) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep)
_AUTOPAR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The model zoo is written as a user would write it.
_ZOO = os.path.join(_AUTOPAR, "models") + os.sep
_LIBRARIES = ("flax", "optax", "equinox", "chex", "jaxtyping", "haiku")
# Where jax calls the body of a jit, checkpoint, custom rule or loop. It may reuse a body that was traced for
# another caller: then the frames outside of this one are that caller's.
_BODY_CALLERS = tuple(
    os.path.join("_src", *path)
    for path in (
        ("pjit.py",), ("ad_checkpoint.py",), ("custom_derivatives.py",),
        ("lax", "control_flow", "loops.py"), ("lax", "control_flow", "conditionals.py"),
    )
)  # fmt: skip
_AGAIN = "rematted_computation"  # what a checkpoint runs again in the backward pass
_WRAPPERS = frozenset({"checkpoint", _AGAIN, "remat"})


class Frame(enum.Enum):
    """What a Python frame belongs to."""

    USER = "user"
    LIBRARY = "library"  # flax, optax, ...: part of the call stack, not the user's line
    HIDDEN = "hidden"  # jax, autopar, the standard library
    CALL = "call"  # jax calling the body of a jit, checkpoint, custom rule or loop


def frame_kind(filename: str) -> Frame:
    """What a source file belongs to."""
    if filename.startswith(_ZOO):
        return Frame.USER
    if filename.startswith(_JAX):
        return Frame.CALL if filename.endswith(_BODY_CALLERS) else Frame.HIDDEN
    if filename.startswith((_AUTOPAR, "<frozen")):
        return Frame.HIDDEN
    for root in _PACKAGES:
        if filename.startswith(root):
            package = filename[len(root) :].split(os.sep, 1)[0]
            return Frame.LIBRARY if package in _LIBRARIES else Frame.HIDDEN if package == "jaxlib" else Frame.USER
    return Frame.HIDDEN if filename.startswith(_STDLIB) else Frame.USER


def line_text(filename: str, line: int, function: str) -> str:
    """``file.py:12 (function)``."""
    return f"{os.path.basename(filename)}:{line} ({function.rpartition('<locals>.')[2]})"


class Cut(enum.Enum):
    """How much of a traceback belongs to the body that an equation is in."""

    ALL = "all"  # the top level
    CALL = "call"  # the frames inside of the first call after the body's own frames
    NOTHING = "nothing"  # the body is jax's own: nothing of it is the user's


UNMARKED = Where(phase="")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the equations of one (inlined) jaxpr stand: what their own marks are added to.

    Attributes:
      where: of the equation that holds the jaxpr; its ``phase`` is empty while no mark has been seen.
      cut: what of the tracebacks counts.
      fixed: the jaxpr was written by autopar; every equation stands exactly at ``where``.
    """

    where: Where = UNMARKED
    cut: Cut = Cut.ALL
    fixed: bool = False


MARK = "@"
"""What the name of a scope begins with whose ops stand at a known place: where the user's op stands."""


class Sources:
    """Reads tracebacks and name stacks, remembering what it has read.

    Args:
      known: name of a scope, beginning with ``MARK`` -> where its ops stand.
    """

    def __init__(self, known: Mapping[str, Where] | None = None) -> None:
        self._known = known or {}
        self._kinds: dict[int, Frame] = {}
        self._stacks: dict[tuple[int, Cut], tuple[str, str]] = {}
        self._scopes: dict[Any, tuple[str, str, bool]] = {}
        self._places: dict[tuple[int, int], str] = {}
        self._digests: dict[tuple[str, ...], str] = {}
        self._alive: list[Any] = []  # ids above are only good while the objects live

    def where(self, source_info: Any, origin: Origin) -> Where:
        """Where an equation with jax's ``source_info`` stands; its phase is empty if nothing marks it."""
        outer = origin.where
        if origin.fixed:
            return outer
        if self._known and (marked := self._marked(source_info.name_stack)) is not None:
            return marked
        line, stack = self._stack(source_info.traceback, origin.cut)
        scope, phase, again = self._scope(source_info.name_stack)
        return Where(
            line=line or outer.line,
            scope=_join(outer.scope, scope),
            stack=f"{stack}>{outer.stack}" if stack and outer.stack else stack or outer.stack,
            # The outermost differentiation decides: a gradient inside a loss is part of its forward pass.
            phase=outer.phase or phase,
            again=outer.again or again,
        )

    def _marked(self, name_stack: Any) -> Where | None:
        names = [getattr(element, "name", "") for element in name_stack.stack]
        return next((self._known[n] for n in reversed(names) if n.startswith(MARK)), None)

    def enter(self, where: Where, body: ClosedJaxpr | Jaxpr) -> Origin:
        """The origin of a body held by an equation at ``where``."""
        if len(where.stack) > 40:  # nested calls would make it ever longer
            where = replace(where, stack=_hash(where.stack))
        jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
        written_at = getattr(jaxpr.debug_info, "func_src_info", None) or ""  # "name at file:line"
        file = written_at.partition(" at ")[2].rpartition(":")[0]
        own = file and frame_kind(file) in (Frame.HIDDEN, Frame.CALL)
        return Origin(where, Cut.NOTHING if own else Cut.CALL)

    def _scope(self, name_stack: Any) -> tuple[str, str, bool]:
        found = self._scopes.get(name_stack)
        if found is None:
            names: list[str] = []
            phase, starts = "", []
            for element in name_stack.stack:
                if type(element).__name__ == "Transform":
                    phase = phase or {"jvp": "forward", "transpose": "backward"}.get(element.name, "")
                    starts += [len(names)] if element.name == "jvp" else []
                elif element.name not in _WRAPPERS:
                    names.append(element.name)
            if len(starts) > 1 and names[starts[0] : starts[1]] == names[starts[1] : 2 * starts[1] - starts[0]]:
                del names[starts[0] : starts[1]]  # a transposed checkpoint is named twice
            again = any(element.name == _AGAIN for element in name_stack.stack)
            found = self._scopes[name_stack] = ("/".join(names), phase, again)
        return found

    def _stack(self, traceback: Any, cut: Cut) -> tuple[str, str]:
        if traceback is None or cut is Cut.NOTHING:
            return "", ""
        key = (id(traceback), cut)
        found = self._stacks.get(key)
        if found is None:
            self._alive.append(traceback)
            found = self._stacks[key] = self._read(*traceback.raw_frames(), cut=cut)
        return found

    def _read(self, codes: Iterable[types.CodeType], lastis: Iterable[int], *, cut: Cut) -> tuple[str, str]:
        kinds = self._kinds
        places = self._places
        user = library = None
        frames: list[str] = []
        for code, lasti in zip(codes, lastis, strict=True):
            kind = kinds.get(id(code))
            if kind is None:
                self._alive.append(code)
                kind = kinds[id(code)] = frame_kind(code.co_filename)
            if kind is Frame.HIDDEN:
                continue
            if kind is Frame.CALL:
                if cut is Cut.CALL and frames:
                    break
                continue
            place = places.get((id(code), lasti))
            if place is None:
                place = places[id(code), lasti] = _place(code, lasti)
            frames.append(place)
            if kind is Frame.USER:
                user = user or (code, lasti)
            else:
                library = library or (code, lasti)
        at = user or library
        return (_line(*at) if at else ""), self._digest(tuple(frames))

    def _digest(self, frames: tuple[str, ...]) -> str:
        found = self._digests.get(frames)
        if found is None:
            found = self._digests[frames] = _hash("|".join(frames)) if frames else ""
        return found


def _position(code: types.CodeType, lasti: int) -> tuple[int, int]:
    """Line and column of an instruction; 0 where Python was told to forget it."""
    line, _, column, _ = next(itertools.islice(code.co_positions(), lasti // 2, None), (0, 0, 0, 0))
    return line or code.co_firstlineno, column or 0


def _line(code: types.CodeType, lasti: int) -> str:
    return line_text(code.co_filename, _position(code, lasti)[0], code.co_qualname)


def _place(code: types.CodeType, lasti: int) -> str:
    """A frame of a stack. With its column: f(x) + f(y) calls f from two places.

    The instruction itself would not do: Python changes instructions as code gets hot.
    """
    line, column = _position(code, lasti)
    return f"{os.path.basename(code.co_filename)}:{code.co_qualname}:{line}:{column}"


def _join(outer: str, inner: str) -> str:
    """Nested scopes; the body of a checkpoint already carries those around it."""
    if not outer or not inner or inner == outer or inner.startswith(outer + "/"):
        return inner or outer
    return f"{outer}/{inner}"


def _hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def user_line(error: BaseException) -> str:
    """The innermost line of the user in an exception's traceback, or an empty string."""
    found, tb = "", error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if frame_kind(code.co_filename) is Frame.USER:
            found = line_text(code.co_filename, tb.tb_lineno, code.co_qualname)
        tb = tb.tb_next
    return found
