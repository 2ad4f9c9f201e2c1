"""The site: `make docs` builds it, and fails on a broken link, anchor or picture, or an undocumented public name.

Nothing is fetched, when it is built or when it is read: fonts are the system's, formulas are MathML.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from pygments.lexers.special import TextLexer  # noqa: E402
from sphinx.highlighting import lexers  # noqa: E402

import autopar  # noqa: E402

project, release, author = "autopar", autopar.__version__, "The autopar authors"
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "docstrings",
    "formulas",
    "outside",
    "public_names",
]
exclude_patterns = ["adr/template.md", "_ext"]

# Every reference must lead somewhere, but for types in signatures: those of others, and of modules that are not public.
default_role = "code"  # the zoo writes `name`
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!autopar\.).*"), ("py:class", r"autopar\.\w+\.(?!_).*")]

# Pages are Markdown that reads well on GitHub, too: links name files, ```math is a formula.
myst_enable_extensions = ["dollarmath", "deflist", "html_image"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

lexers["mermaid"] = TextLexer()  # drawn on GitHub, text here

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "no-value": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "autopar"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = html_domain_indices = False
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"
