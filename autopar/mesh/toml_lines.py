"""On which line of a TOML file a field stands: what ``tomllib`` does not keep and an error should say."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping

Path = tuple[str | int, ...]
"""Keys and positions from the root to a field: ``("level", 1, "bandwidth")``."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(r'"""(?:\\.|(?!""").)*"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|\'[^\']*\'', re.DOTALL)
_WORD = re.compile(r"[^,\]}\n#]+")


def lines_of(text: str) -> Mapping[Path, int]:
    """The line of every table and every field, counted from 1.

    Args:
      text: TOML that ``tomllib`` accepts.

    >>> text = "[[level]] | size = 2 | [[level]] | size = 4".replace(" | ", chr(10))
    >>> lines_of(text)["level", 1, "size"]
    4
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breaks = [i for i, letter in enumerate(text) if letter == "\n"]
        self._arrays: dict[Path, int] = {}  # arrays of tables -> index of the last one
        self._found: dict[Path, int] = {}

    def scan(self) -> Mapping[Path, int]:
        table: Path = ()
        while not self._ends():
            if self._take("["):
                table = self._header(array=self._take("["))
            else:
                self._field(table)
        return self._found

    def _header(self, *, array: bool) -> Path:
        line = self._line()
        table: Path = ()
        keys = self._keys()
        for i, key in enumerate(keys):
            table += (key,)
            if array and i == len(keys) - 1:
                self._arrays[table] = self._arrays.get(table, -1) + 1
            if table in self._arrays:
                self._found.setdefault(table, line)
                table += (self._arrays[table],)
        self._take("]")
        if array:
            self._take("]")
        self._found[table] = line
        return table

    def _field(self, table: Path) -> None:
        line = self._line()
        for key in self._keys():
            table += (key,)
            self._found.setdefault(table, line)
        self._take("=")
        self._value(table)

    def _keys(self) -> list[str]:
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip()
        quoted = _STRING.match(self._text, self._at)
        match = quoted or _BARE.match(self._text, self._at)
        if match is None:  # no TOML; better a field without a line than a loop without an end
            self._at += 1
            return ""
        self._at = match.end()
        return match[0][1:-1] if quoted else match[0]

    def _value(self, path: Path) -> None:
        self._skip()
        self._found.setdefault(path, self._line())
        if self._take("{"):
            while not self._take("}") and not self._ends():
                self._field(path)
                self._take(",")
        elif self._take("["):
            index = 0
            while not self._take("]") and not self._ends():
                self._value((*path, index))
                self._take(",")
                index += 1
        else:
            match = _STRING.match(self._text, self._at) or _WORD.match(self._text, self._at)
            self._at = match.end() if match else self._at + 1

    def _take(self, letter: str) -> bool:
        self._skip()
        found = self._text.startswith(letter, self._at)
        self._at += found
        return found

    def _ends(self) -> bool:
        self._skip()
        return self._at >= len(self._text)

    def _skip(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _line(self) -> int:
        return bisect.bisect_left(self._breaks, self._at) + 1
