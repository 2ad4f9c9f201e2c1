"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from autopar.errors import AutoparError


def write_text(path: str | os.PathLike[str], text: str, error: type[AutoparError], what: str) -> None:
    """Write a text file; an existing file is replaced only once the new one is complete.

    Args:
      path: of the file.
      text: its content.
      error: what to raise if it cannot be written.
      what: is written, for that message: ``the plan``.

    Raises:
      AutoparError: of the kind ``error``: there is no such folder, or it cannot be written to.
    """
    target = Path(path)
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except OSError as failure:
        if name and os.path.exists(name):
            os.unlink(name)
        why = f"there is no folder {os.fspath(target.parent)!r}" if not target.parent.is_dir() else failure.strerror
        raise error(f"cannot save {what} as {os.fspath(path)!r}: {why}. Name a file that can be written.") from failure


def _mode(target: Path) -> int:
    """Who may read a file: those who may read the one that it replaces, or a new one of this user."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
