"""The command ``autopar diff``."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autopar.api import load_plan
from autopar.report import print_diff


def diff_command(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A saved plan")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another one")],
    json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON, numbers in SI units")] = False,
) -> None:
    """Say what changed from one plan to another. Exit status 0 if they are the same, 1 if not, 2 on errors.

    \b
    Examples:
      autopar diff a.json b.json
      autopar diff a.json b.json --json
      autopar diff a.json b.json > /dev/null && echo the same plan
    """
    found = load_plan(before).diff(load_plan(after))
    if json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        print_diff(found)
    raise typer.Exit(0 if found.same else 1)
