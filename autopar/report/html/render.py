"""From a document to one file of HTML that needs nothing else: style, scripts, data and the plotting library in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from autopar.report.html.costs import MEMORY_KINDS
from autopar.report.html.document import Document
from autopar.report.html.model import Mix, Picture

_HERE = "autopar.report.html"
_LIBRARY = ("bokeh.min.js", "bokeh-api.min.js")
_KINDS = (("F", "forward"), ("B", "backward"), ("W", "gradients of weights"), ("U", "once per step"))
_WIDTH, _HEIGHT = 30, 20  # of the picture of an array


def render(found: Document) -> str:
    """The page.

    Args:
      found: what it says.

    Returns:
      HTML of about 1.5 MB, most of which is Bokeh, the library that draws.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False
    )
    environment.filters |= _FILTERS
    template = environment.get_template("page.html.jinja")
    kinds = {bar.kind for panel in found.line.panels for bar in panel.bars} if found.line else set()
    scripts = [_asset("page.js"), *map(_library, _LIBRARY), _asset("charts.js")]
    return template.render(
        d=found,
        roads=found.machine.roads,
        kinds=[(kind, word) for kind, word in _KINDS if kind in kinds],
        memory_kinds=MEMORY_KINDS,
        css=Markup(_asset("style.css")),
        scripts=list(map(_script, scripts)),
        data=Markup(json.dumps(_data(found), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
    )


def _asset(name: str) -> str:
    return files(_HERE).joinpath(name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    return files("bokeh").joinpath("server", "static", "js", name).read_text(encoding="utf-8")


def _script(text: str) -> Markup:
    """Our own and the library's code; what ends a script element must not be in it."""
    if "</script" in text or "<!--" in text:
        raise ValueError("a script of the page would end before its end")
    return Markup(text)


def _data(found: Document) -> dict[str, Any]:
    """What the charts draw. Numbers of seconds are rounded to what can be seen and said."""
    line = found.line
    limit = found.limit_bytes if found.limit_bytes < float("inf") else None
    data: dict[str, Any] = {
        "choices": [[c.name, c.step_s, c.step, c.slower, c.peak_bytes, c.peak, c.chosen] for c in found.choices],
        "limit": limit,
    }
    if line is None:
        return data
    data["step_s"] = line.step_s
    data["scale"] = line.scale_bytes
    data["panels"] = [
        {
            "start": panel.start_s,
            "end": panel.end_s,
            "lanes": panel.lanes,
            "bars": [[b.lane, b.kind, b.label, _short(b.start_s), _short(b.end_s), b.what] for b in panel.bars],
        }
        for panel in line.panels
    ]
    data["held"] = [
        {
            "name": held.name,
            "said": held.peak,
            "limit": held.limit_bytes if held.limit_bytes < float("inf") else None,
            "starts": list(map(_short, held.starts_s)),
            "low": held.low,
            "high": held.high,
        }
        for held in line.held
    ]
    return data


def _short(seconds: float) -> float:
    return float(f"{seconds:.7g}")


def _percent(share: float) -> str:
    """A width in CSS."""
    return f"{100 * min(max(share, 0.0), 1.0):.4g}%"


def _slug(name: str) -> str:
    """A name as a class of CSS."""
    return name.replace(" ", "-")


def _spans(numbers: Sequence[Sequence[int]]) -> str:
    """The numbers that each ``#`` of a path stands for, as the search reads them.

    >>> _spans(((0, 1, 2, 3), (5,), (1, 2, 7)))
    '0-3;5;1-2,7'
    """
    return ";".join(",".join(_runs(sorted(set(found)))) for found in numbers)


def _runs(found: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for n in found:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return [f"{a}-{b}" if b > a else str(a) for a, b in runs]


def _bands(picture: Picture) -> list[dict[str, object]]:
    """What is shaded: a half for each axis; what two axes shade is what a device holds."""
    across, along = picture
    found = [{"axis": f"a{a % 4}", "width": _WIDTH, "height": _HEIGHT / 2 ** (k + 1)} for k, a in enumerate(across)]
    found += [{"axis": f"a{a % 4}", "width": _WIDTH / 2 ** (k + 1), "height": _HEIGHT} for k, a in enumerate(along)]
    return found or [{"axis": "whole", "width": _WIDTH, "height": _HEIGHT}]


def _mixed(mix: Mix) -> list[dict[str, object]]:
    return [{"axes": " ".join(f"a{a % 4}" for a in axes) or "whole", "share": share} for axes, share in mix]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_FILTERS = {
    "bands": _bands,
    "capital": _capital,
    "hue": lambda stage: stage * 137 % 360,  # neighbours unlike, and always the same
    "mixed": _mixed,
    "percent": _percent,
    "slug": _slug,
    "spans": _spans,
    "thousands": lambda n: f"{n:,}",
}
