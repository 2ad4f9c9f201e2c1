"""Where an equation comes from: the user's line, the call stack, the named scopes, the phase.

jax keeps a Python traceback and a name stack per equation. A graph has tens of thousands of them, so
everything here is remembered per traceback, per code object and per name stack.
"""

from __future__ import annotations

import enum
import hashlib
import os
import sysconfig
import types
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax

import autopar
from autopar.ir import Where

_JAX = os.path.dirname(jax.__file__) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep)
_AUTOPAR = os.path.dirname(autopar.__file__) + os.sep
# The model zoo is written as a user would write it.
_ZOO = os.path.join(_AUTOPAR, "models") + os.sep
_LIBRARIES = ("flax", "optax", "equinox", "chex", "jaxtyping", "haiku")
_JIT_FILE = os.path.join("_src", "pjit.py")
_WRAPPERS = frozenset({"checkpoint", "rematted_computation", "remat"})


class Frame(enum.Enum):
    """What a Python frame belongs to."""

    USER = "user"
    LIBRARY = "library"  # flax, optax, ...: part of the call stack, not the user's line
    HIDDEN = "hidden"  # jax, autopar, the standard library
    JIT = "jit"  # jax entering a jitted function


def frame_kind(filename: str) -> Frame:
    """What a source file belongs to."""
    if filename.startswith(_ZOO):
        return Frame.USER
    if filename.startswith(_JAX):
        return Frame.JIT if filename.endswith(_JIT_FILE) else Frame.HIDDEN
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


UNMARKED = Where(phase="")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the equations of one (inlined) jaxpr stand: what their own marks are added to.

    Attributes:
      where: of the equation that holds the jaxpr; its ``phase`` is empty while no mark has been seen.
      jitted: the jaxpr may be cached by jax, so its tracebacks are those of whoever called it first.
      fixed: the jaxpr was written by autopar; every equation stands exactly at ``where``.
    """

    where: Where = UNMARKED
    jitted: bool = False
    fixed: bool = False


class Sources:
    """Reads tracebacks and name stacks, remembering what it has read."""

    def __init__(self) -> None:
        self._kinds: dict[int, Frame] = {}
        self._stacks: dict[tuple[int, bool], tuple[str, str]] = {}
        self._scopes: dict[Any, tuple[str, str]] = {}
        self._lines: dict[tuple[int, int], str] = {}
        self._digests: dict[tuple[int, ...], str] = {}
        self._alive: list[Any] = []  # ids above are only good while the objects live

    def where(self, source_info: Any, origin: Origin) -> Where:
        """Where an equation with jax's ``source_info`` stands; its phase is empty if nothing marks it."""
        outer = origin.where
        if origin.fixed:
            return outer
        line, stack = self._stack(source_info.traceback, origin.jitted)
        scope, phase = self._scope(source_info.name_stack)
        return Where(
            line=line or outer.line,
            scope=f"{outer.scope}/{scope}" if outer.scope and scope else outer.scope or scope,
            stack=f"{stack}>{outer.stack}" if stack and outer.stack else stack or outer.stack,
            # The outermost differentiation decides: a gradient inside a loss is part of its forward pass.
            phase=outer.phase or phase,
        )

    def enter(self, where: Where, *, jitted: bool = False, fixed: bool = False) -> Origin:
        """The origin of a jaxpr held by an equation at ``where``."""
        if len(where.stack) > 40:  # nested calls would make it ever longer
            where = replace(where, stack=_digest(where.stack.encode()))
        return Origin(where, jitted, fixed)

    def _scope(self, name_stack: Any) -> tuple[str, str]:
        found = self._scopes.get(name_stack)
        if found is None:
            names, phase = [], ""
            for element in name_stack.stack:
                if type(element).__name__ == "Transform":
                    phase = phase or {"jvp": "forward", "transpose": "backward"}.get(element.name, "")
                elif element.name not in _WRAPPERS:
                    names.append(element.name)
            found = self._scopes[name_stack] = ("/".join(names), phase)
        return found

    def _stack(self, traceback: Any, jitted: bool) -> tuple[str, str]:
        if traceback is None:
            return "", ""
        key = (id(traceback), jitted)
        found = self._stacks.get(key)
        if found is None:
            self._alive.append(traceback)
            found = self._stacks[key] = self._read(*traceback.raw_frames(), jitted=jitted)
        return found

    def _read(self, codes: Iterable[types.CodeType], lastis: Iterable[int], *, jitted: bool) -> tuple[str, str]:
        kinds = self._kinds
        user = library = None
        kept: list[int] = []
        frames: list[tuple[types.CodeType, int]] = []
        for code, lasti in zip(codes, lastis, strict=True):
            kind = kinds.get(id(code))
            if kind is None:
                self._alive.append(code)
                kind = kinds[id(code)] = frame_kind(code.co_filename)
            if kind is Frame.HIDDEN:
                continue
            if kind is Frame.JIT:
                if jitted:
                    break
                continue
            kept += (id(code), lasti)
            frames.append((code, lasti))
            if kind is Frame.USER:
                user = user or (code, lasti)
            else:
                library = library or (code, lasti)
        at = user or library
        return (self._line(*at) if at else ""), self._stack_digest(tuple(kept), frames)

    def _line(self, code: types.CodeType, lasti: int) -> str:
        key = (id(code), lasti)
        found = self._lines.get(key)
        if found is None:
            line = next((n for start, end, n in code.co_lines() if start <= lasti < end and n), code.co_firstlineno)
            found = self._lines[key] = line_text(code.co_filename, line, code.co_qualname)
        return found

    def _stack_digest(self, key: tuple[int, ...], frames: list[tuple[types.CodeType, int]]) -> str:
        if not frames:
            return ""
        found = self._digests.get(key)
        if found is None:
            # The instruction, not the line: f(x) + f(y) calls f from two places.
            text = "|".join(f"{os.path.basename(c.co_filename)}:{c.co_qualname}:{lasti}" for c, lasti in frames)
            found = self._digests[key] = _digest(text.encode())
        return found


def _digest(data: bytes) -> str:
    return hashlib.blake2s(data, digest_size=6).hexdigest()


def user_line(error: BaseException) -> str:
    """The innermost line of the user in an exception's traceback, or an empty string."""
    found, tb = "", error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if frame_kind(code.co_filename) is Frame.USER:
            found = line_text(code.co_filename, tb.tb_lineno, code.co_qualname)
        tb = tb.tb_next
    return found
