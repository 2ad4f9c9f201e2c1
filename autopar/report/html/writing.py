"""The page of a plan, as text and as a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from autopar.errors import PlanError
from autopar.files import write_text
from autopar.plan import PlanFacts
from autopar.report.html.document import document
from autopar.report.html.render import render
from autopar.simulate import Measured


def html_text(plan: PlanFacts, measured: Sequence[Measured] = ()) -> str:
    """The page of a plan as HTML.

    Args:
      plan: any.
      measured: spans of a step that ran under it, to stand beside the prediction.

    Raises:
      OptionError: the spans are of another plan.
    """
    return render(document(plan, measured))


def write_html(plan: PlanFacts, path: str | os.PathLike[str], measured: Sequence[Measured] = ()) -> None:
    """Write the page of a plan: one file that a browser opens without network.

    Args:
      plan: any.
      path: of the file.
      measured: as for :func:`html_text`.

    Raises:
      PlanError: the file cannot be written.
      OptionError: the spans are of another plan.
    """
    write_text(path, html_text(plan, measured), PlanError, "the page")
