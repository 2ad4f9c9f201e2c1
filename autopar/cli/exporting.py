"""The command ``autopar export``."""

# ruff: noqa: D301 (in help texts the backspace character itself tells click to keep the lines of examples)

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from autopar.api import Plan, load_plan
from autopar.cli.arguments import check_folder
from autopar.cli.progress import notes
from autopar.errors import OptionError, nearest
from autopar.files import write_text

FORMATS: Mapping[str, Callable[[Plan], str]] = {
    "specs": Plan.partition_specs,
    "mermaid": lambda plan: plan.stage_graph("mermaid"),
    "graphviz": lambda plan: plan.stage_graph("graphviz"),
    "perfetto": lambda plan: plan.simulate().perfetto_text(),
}
"""What a plan can be written as."""


def export_command(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A saved plan")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="specs (PartitionSpecs as Python), mermaid or graphviz (the stages as a graph), perfetto (the "
            "predicted step as a trace)",
        ),
    ] = "specs",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file [default: standard output]")
    ] = None,
) -> None:
    """Write a plan for other programs: layouts to paste, the stages as a graph, the predicted step as a trace.

    \b
    Examples:
      autopar export plan.json --format specs -o specs.py
      autopar export plan.json --format mermaid
      autopar export plan.json --format graphviz | dot -Tsvg > plan.svg
      autopar export plan.json --format perfetto -o trace.json
    """
    if form not in FORMATS:
        raise OptionError(f"a plan cannot be exported as {form!r}: {nearest(form, FORMATS)}")
    if out is not None:
        check_folder("--out", out)
    text = FORMATS[form](load_plan(plan_file))
    if out is None:
        sys.stdout.write(text)
        return
    write_text(out, text, OptionError, "the export")
    notes().print(f"wrote {out}", markup=False, soft_wrap=True)
