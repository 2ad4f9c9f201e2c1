"""Reads the blocks of a Markdown page, and runs them as a reader would: in order, in one namespace and one folder.

What is run:

- ``python`` blocks.
- In ``sh`` blocks, ``autopar`` commands, in this process. Other commands only have to exist (`known`).
- In any other block, and in indented ones, lines that begin with ``autopar`` or ``make`` are parsed, not run.
- ``toml`` blocks are clusters.

A comment right before a block says more, without being seen on the page:

- ``<!-- output -->``: a text block is what the block before it printed, or the error that it raised. Spaces and line
  ends do not matter, ``...`` stands for anything.
- ``<!-- raises: PlanError -->``: a python block ends with this error.
- ``<!-- not run: why -->``: a python block is only compiled, commands are only parsed.
- ``<!-- setup``, code, ``-->``: python that is run, and is no block of the page.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import linecache
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from markdown_it import MarkdownIt

from autopar.cli import main
from autopar.cli.app import app
from autopar.mesh import Cluster

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    path
    for path in sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/README.md"))
    if path.name not in ("template.md", "CHANGELOG.md")
)
SHELL = ("sh", "bash", "shell", "console")
ELSEWHERE = ("pip", "ray", "export", "bash", "head", "echo", "dot")  # commands of others, taken as they are
NOTE = re.compile(r"<!--\s*(output|raises|not run|setup)\b:?\s*(.*?)\s*-->", re.DOTALL)
COMMANDS = tuple(typer.main.get_command(app).commands)
COMMAND = re.compile(r"^\s*(?:\$ )?((?:JAX_\w+=\S+ )*(?:autopar|make|python)\b.*)$", re.MULTILINE)
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
VOLATILE = re.compile(r"(?<=built in )[\d.]+ \w+|(?<=solved in )[\d.]+ \w+")  # times of this machine
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class BlockError(AssertionError):
    """A block is not what its page says."""


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
      page: its file.
      line: the line before its first line.
      language: such as ``python``; empty for indented ones.
      text: what is in it.
      note: the comment right before it: its word, and what follows.
    """

    page: Path
    line: int
    language: str
    text: str
    note: tuple[str, str] = ("", "")

    @property
    def place(self) -> str:
        """``docs/pipelines.md:12``."""
        page = self.page.relative_to(ROOT).as_posix() if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{self.line + 1}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, setups among them, in order.

    Raises:
      BlockError: a comment is none of those above.
    """
    found: list[Block] = []
    note = ("", "")
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "html_block" and token.content.startswith("<!--"):
            match = NOTE.search(token.content)
            if match is None:
                raise BlockError(
                    f"{Block(page, token.map[0], '', '').place}: {token.content.strip()} says nothing here"
                )
            note = (match[1], match[2])
            if note[0] == "setup":
                line = token.map[0] + token.content[: match.start(2)].count("\n")
                found.append(Block(page, line, "python", match[2], note))
                note = ("", "")
        elif token.type in ("fence", "code_block"):
            fenced = token.type == "fence"
            language = token.info.strip().split(" ")[0] if fenced else ""
            found.append(Block(page, token.map[0] + fenced, language, token.content, note))
            note = ("", "")
        elif not token.hidden and token.type != "html_block":
            note = ("", "") if token.level == 0 else note
    return found


def run_page(page: Path, names: dict[str, object]) -> Iterator[tuple[Block, str]]:
    """Run a page in the current folder.

    Args:
      page: its file.
      names: the namespace of its python blocks.

    Yields:
      Every block whose printed text the page shows, with what was printed.

    Raises:
      BlockError: a block is wrong; the message begins with its place.
    """
    printed = ""
    for block in blocks(page):
        if block.note[0] == "output":
            yield block, printed
        elif block.language == "python":
            printed = run_python(block, names)
        elif block.language == "toml":
            Path("cluster.toml").write_text(block.text)
            Cluster.load("cluster.toml")
        else:
            printed = run_commands(block)


def run_python(block: Block, names: dict[str, object]) -> str:
    """Run one python block; what it prints, and the error that it was to raise.

    Where autopar names the user's lines, they are those of the block, in a file `step.py`.

    Raises:
      BlockError: it fails, or does not where it should.
    """
    linecache.cache["step.py"] = (len(block.text), None, block.text.splitlines(keepends=True), "step.py")
    try:
        code = compile(block.text, "step.py", "exec")
    except SyntaxError as error:
        raise BlockError(f"{block.place}: {error}") from error
    if block.note[0] == "not run":
        return ""
    expected = block.note[1] if block.note[0] == "raises" else ""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(code, names)
    except Exception as error:
        if expected not in (kind.__name__ for kind in type(error).__mro__):
            raise BlockError(f"{block.place}: {type(error).__name__}: {error}") from error
        return f"{out.getvalue()}{expected}: {error}\n"
    if expected:
        raise BlockError(f"{block.place}: nothing was raised, {expected} was expected")
    return out.getvalue()


def run_commands(block: Block) -> str:
    """Run, or only parse, the commands of a block; what they print."""
    shell, printed = block.language in SHELL, ""
    text = re.sub(r"\\\n\s*", "", block.text)
    for line in text.splitlines() if shell else COMMAND.findall(text):
        for command in split_commands(line):
            known(block, command)
            if shell and command[0] == "autopar" and block.note[0] != "not run":
                printed += run_autopar(block, command[1:])
            elif shell and command[0] == "head":
                printed = "".join(printed.splitlines(keepends=True)[: int(command[1].strip("-n"))])
    return printed


def split_commands(line: str) -> list[list[str]]:
    """The commands of a line, joined by ``&&``, ``||`` or ``|``, without redirections and settings of environment.

    >>> split_commands("A=1 autopar plan gpt && autopar show plan.json > page.txt || echo no  # comment")
    [['autopar', 'plan', 'gpt'], ['autopar', 'show', 'plan.json'], ['echo', 'no']]
    """
    found: list[list[str]] = [[]]
    words = iter(shlex.split(line.strip().removeprefix("$ "), comments=True))
    for word in words:
        if word in ("&&", "||", "|"):
            found.append([])
        elif word == ">":
            next(words)
        elif found[-1] or not re.fullmatch(r"[A-Z_0-9]+=.*", word):
            found[-1].append(word)
    return [command for command in found if command]


def known(block: Block, command: list[str]) -> None:
    """Check that a command exists, and takes these options.

    Raises:
      BlockError: it does not.
    """
    program, *rest = command
    if program == "autopar":
        parse(block, rest)
    elif program == "make":
        for target in (word for word in rest if "=" not in word):
            if target not in TARGETS:
                raise BlockError(f"{block.place}: the Makefile has no target {target!r}")
    elif program == "python":
        if rest[0].endswith(".py") and not (ROOT / rest[0]).is_file():
            raise BlockError(f"{block.place}: there is no {rest[0]}")
    elif program not in ELSEWHERE:
        raise BlockError(f"{block.place}: {program!r} is no command that is known here")


def parse(block: Block, words: list[str]) -> None:
    """Parse the words after ``autopar`` without running them.

    Raises:
      BlockError: there is no such command or option.
    """
    group = typer.main.get_command(app)
    if words in ([], ["--help"]) or words[0] == "COMMAND":
        return
    try:
        with group.make_context("autopar", list(words), resilient_parsing=False) as context:
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            if "--help" not in rest:
                command.make_context(name, rest, parent=context).close()
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else error
        raise BlockError(f"{block.place}: autopar {' '.join(words)}: {message}") from error


def run_autopar(block: Block, words: list[str]) -> str:
    """Run a command in this process; what it prints on standard output, or its error.

    Raises:
      BlockError: its exit status is not 0, and its block is not said to fail.
    """
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            status = end.code or 0
    if (status != 0) != (block.note[0] == "raises"):
        raise BlockError(f"{block.place}: autopar {' '.join(words)}: exit status {status}\n{err.getvalue()[-2000:]}")
    return VOLATILE.sub("...", out.getvalue() if status == 0 else err.getvalue())


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed.

    >>> same("step  ... ms", "step 3.2 ms\\n")
    True
    """
    return doctest.OutputChecker().check_output(shown.strip() + "\n", printed.strip() + "\n", FLAGS)
