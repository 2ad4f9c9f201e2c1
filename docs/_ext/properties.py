"""A colon in a property's docstring is one of the sentence; napoleon would take what stands before it for a type."""

from sphinx.application import Sphinx

COLON = "\N{INVISIBLE SEPARATOR}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Hide the colon from napoleon, which comes at priority 500."""
    app.connect("autodoc-process-docstring", hide, priority=400)
    app.connect("autodoc-process-docstring", show, priority=600)
    return {"parallel_read_safe": True}


def hide(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Of the first line."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(":", COLON)


def show(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Put it back."""
    lines[:] = [line.replace(COLON, ":") for line in lines]
