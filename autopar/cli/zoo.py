"""The tables of ``autopar models``."""

from __future__ import annotations

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopar.models import MODELS, Family, Recipe

_FIGURES = ("parameters", "activated", "training FLOPs", "batch")


def families() -> Group:
    """Every family: its presets, its source, and the figures of its toy preset."""
    return Group(*(part for family in MODELS.values() for part in _family(family)))


def _family(family: Family) -> tuple[Text, Padding]:
    parameters, activated, flops = _figures(family("toy"))
    about = Table.grid(padding=(0, 2))
    about.add_row("presets", Text(" ".join(family.presets)))
    about.add_row("toy", f"{parameters} parameters, {activated} activated; training FLOPs: {flops}")
    about.add_row("source", Text(family.source))
    return Text(f"{family.name}: {family.summary}"), Padding(about, (0, 0, 0, 2))


def presets(name: str) -> Table:
    """Every preset of a family."""
    table = _table("preset", "batch", *_FIGURES[:3])
    for preset in MODELS[name].presets:
        recipe = MODELS[name](preset)
        table.add_row(preset, f"{recipe.config.batch_size:,}", *_figures(recipe))
    return table


def _figures(recipe: Recipe) -> tuple[str, str, str]:
    unit = recipe.unit.removesuffix("s")
    flops = recipe.flops() / recipe.units
    return f"{recipe.parameter_count():,}", f"{recipe.active_parameter_count():,}", f"{_short(flops)} per {unit}"


def _short(count: float) -> str:
    """A number in three digits.

    >>> _short(737280), _short(2.4e12), _short(12)
    ('737 k', '2.4 T', '12')
    """
    for scale, letter in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= scale:
            return f"{count / scale:.3g}{letter}"
    return f"{count:.3g}"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, justify="right" if title in _FIGURES else "left", no_wrap=True)
    return table
