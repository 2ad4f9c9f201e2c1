"""A plan as a page in the browser: facts -> document (what it says) -> one HTML file (how it looks)."""

from autopar.report.html.document import Document, digest, document
from autopar.report.html.render import render
from autopar.report.html.writing import html_text, write_html

__all__ = ["Document", "digest", "document", "html_text", "render", "write_html"]
