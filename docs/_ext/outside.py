"""Pages that lie outside of docs/, where the repository's readers look for them: links to them lead to their copies."""

from sphinx.application import Sphinx

PAGES = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../examples/README.md": "examples.md",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite links as pages are read."""
    app.connect("source-read", lead_inside)
    return {"parallel_read_safe": True}


def lead_inside(app: Sphinx, page: str, source: list[str]) -> None:
    """Links of one page."""
    up = "../" * page.count("/")
    for outside, inside in PAGES.items():
        source[0] = source[0].replace(f"]({up}{outside}", f"]({up}{inside}")
