"""Fits autodoc and napoleon to docstrings of this house.

- A colon in the first line of a property's docstring, or under Returns, is one of the sentence; napoleon would take
  what stands before it for a type.
- ``first_s, last_s: text`` among Attributes is of both names.
- Signatures of dataclasses are names and defaults; types stand beside the attributes.
- Fields of named tuples are told once, under Attributes.
- Pages of modules have an introduction of their own.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.domains.python import PyClasslike

COLON = "\N{INVISIBLE SEPARATOR}"
SHARED = re.compile(r"( *)(\w+(?:, \w+)+): (.*)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Join autodoc before and after napoleon, which comes at priority 500."""
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    for field in PyClasslike.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}


def before(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """What napoleon must not see."""
    if what == "module":
        lines.clear()
    elif what == "property" and lines:
        lines[0] = lines[0].replace(":", COLON)
    elif what == "class":
        lines[:] = one_by_one(lines)
    for i, line in enumerate(lines[1:], 1):
        if lines[i - 1].strip() == "Returns:":
            lines[i] = line.replace(": ", f"{COLON} ")


def after(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Put the colon back, and shorten types."""
    for i, line in enumerate(lines):
        short = line.replace("collections.abc.", "") if line.startswith(":vartype") else line
        lines[i] = short.replace(COLON, ":")


def one_by_one(lines: list[str]) -> Iterator[str]:
    """Attributes that share a text, each with that text.

    >>> list(one_by_one(["Attributes:", "  a, b: both", "    of them."]))
    ['Attributes:', '  a: both', '    of them.', '  b: both', '    of them.']
    """
    inside = False
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        inside = line.strip() == "Attributes:" or (inside and (not line or line.startswith(" ")))
        match = SHARED.fullmatch(line) if inside else None
        if match is None:
            yield line
            continue
        indent, more = match[1], []
        while rest and rest[0].startswith(indent + " "):
            more.append(rest.pop(0))
        for name in match[2].split(", "):
            yield f"{indent}{name}: {match[3]}"
            yield from more


def signature(
    app: Sphinx, what: str, name: str, found: object, options: object, arguments: str | None, returns: str | None
) -> tuple[str, str] | None:
    """Of a dataclass: what may be given, with its default."""
    if what != "class" or not dataclasses.is_dataclass(found) or not arguments:
        return None
    fields = {field.name: field for field in dataclasses.fields(found)}
    given = [parameter(p, fields) for p in inspect.signature(found).parameters.values()]
    first = next((i for i, p in enumerate(given) if p.kind is p.KEYWORD_ONLY), None)
    words = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given]
    if first is not None:
        words.insert(first, "*")
    return f"({', '.join(words)})", ""


def parameter(found: inspect.Parameter, fields: dict[str, dataclasses.Field]) -> inspect.Parameter:
    """A parameter whose default is the value, also where it is made anew for each object."""
    made = fields[found.name].default_factory if found.name in fields else dataclasses.MISSING
    return found if made is dataclasses.MISSING else found.replace(default=made())


def skip(app: Sphinx, what: str, name: str, found: object, skipped: bool, options: object) -> bool | None:
    """Whether a member is left out; None asks others."""
    return True if type(found).__name__ == "_tuplegetter" else None
