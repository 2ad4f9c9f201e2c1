"""`{commands}`: what `--help` prints of every command, with the command line as it is."""

import contextlib
import io
import os

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from autopar.cli import main
from autopar.cli.app import app as command_line

WIDTH = "100"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}


class Commands(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Sections."""
        return [self.section(name) for name in typer.main.get_command(command_line).commands]

    def section(self, name: str) -> nodes.section:
        """One command: its name, and its help."""
        section = nodes.section(ids=[f"autopar-{name}"], names=[f"autopar {name}"])
        section += nodes.title("", "", nodes.literal(text=f"autopar {name}"))
        section += nodes.literal_block(text=help_of(name), language="text")
        self.state.document.note_explicit_target(section)
        return section


def help_of(name: str) -> str:
    """What is printed."""
    os.environ["COLUMNS"] = WIDTH
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return out.getvalue()
