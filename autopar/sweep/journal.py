"""The rows of a sweep on disk, as they come: an interrupted sweep goes on where it was.

A file of lines of JSON: what was asked, then a row for each point that is done. A line is whole once its end is
written, so of an interrupted one nothing counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopar.errors import OptionError
from autopar.files import write_text
from autopar.sweep.rows import FORMAT, KIND, Row, read_rows


class Journal:
    """What is done of a sweep.

    Args:
      folder: where it is; made, if there is none.
      about: what is asked, as JSON has it: an earlier sweep in the folder must have been asked the same.

    Attributes:
      rows: that are done, by key.

    Raises:
      OptionError: the folder holds another sweep, or a file that is none, or cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.path = Path(folder) / "sweep.jsonl"
        self.rows: dict[tuple[str, str, int | str], Row] = {}
        head = {"kind": KIND, "format": FORMAT, "about": json.loads(json.dumps(dict(about)))}
        try:
            Path(folder).mkdir(exist_ok=True)
            lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot keep a sweep in {os.fspath(folder)!r}: {error}. Name another folder.") from error
        lines = lines[:-1]  # what follows the last end of line is empty, or was interrupted
        if lines:
            self._resume(head, lines)
        write_text(self.path, "".join(f"{line}\n" for line in [json.dumps(head), *lines[1:]]), OptionError, "the sweep")

    def _resume(self, head: Mapping[str, Any], lines: list[str]) -> None:
        try:
            found, *rows = map(json.loads, lines)
            if found["kind"] != KIND or found["format"] != FORMAT:
                raise ValueError(f"kind {found['kind']!r}, format {found['format']!r}")
            about = dict(found["about"])
            self.rows = {row.key: row for row in read_rows(rows)}
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"{self.path} is damaged, or no file of a sweep ({error}). Move it away, or sweep into another folder."
            ) from error
        for name, asked in head["about"].items():
            if about.get(name) != asked:
                raise OptionError(
                    f"{self.path.parent} holds another sweep: {name} was {_text(about.get(name))}, and is now "
                    f"{_text(asked)}. Ask for the same to go on with it, or sweep into another folder."
                )

    def add(self, row: Row) -> None:
        """Write a row down, for good."""
        self.rows[row.key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:110]}..."
