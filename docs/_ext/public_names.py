"""Every public name has an entry in the reference, and its docstring tells of all its parameters, or the build fails.

Public is what the `__all__` of the modules below names, and the methods of what it names. An object that several
modules name needs one entry.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PUBLIC = (
    "autopar",
    "autopar.calibrate",
    "autopar.errors",
    "autopar.mesh",
    "autopar.models",
    "autopar.plan",
    "autopar.prediction",
    "autopar.report",
    "autopar.runtime",
    "autopar.schedule",
    "autopar.simulate",
    "autopar.sweep",
)

log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Check when all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what is missing; `-W` makes warnings errors."""
    entries = {name for name, entry in env.domains.python_domain.objects.items() if entry.objtype != "module"}
    for places, found in public():
        for problem in problems(places, found, entries):
            log.warning("%s", problem, type="public_names")


def public() -> list[tuple[list[str], object]]:
    """Everything public, with all its dotted names."""
    places: dict[int, list[str]] = {}
    objects: dict[int, object] = {}
    for path in PUBLIC:
        module = importlib.import_module(path)
        for name in exported(module):
            found = getattr(module, name)
            objects[id(found)] = found
            places.setdefault(id(found), []).append(f"{path}.{name}")
    return [(places[key], found) for key, found in objects.items()]


def exported(module: ModuleType) -> list[str]:
    """What a module exports: its `__all__`, or what it defines itself."""
    own = [n for n, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [n for n in own if not n.startswith("_")]))


def problems(places: list[str], found: object, entries: set[str]) -> Iterator[str]:
    """What the reference lacks about one object."""
    first = places[0]
    if entries.isdisjoint(places):
        yield f"{' alias '.join(places)} is public and has no entry in docs/reference"
    if inspect.isclass(found) and not (found.__doc__ or "").strip():
        yield f"{first} has no docstring"
    for place, function in functions(first, found):
        for parameter in untold(function, strict=first.count(".") == 1):
            yield f"{place}: its docstring does not tell of {parameter}"


def functions(place: str, found: object) -> Iterator[tuple[str, Callable[..., object]]]:
    """A function, or the public methods and properties of a class."""
    if inspect.isfunction(found):
        yield place, found
    elif inspect.isclass(found):
        for name, member in vars(found).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{place}.{name}", function


def untold(function: Callable[..., object], *, strict: bool) -> list[str]:
    """Parameters of which a docstring tells neither under Args nor in its text.

    Args:
      function: whose docstring.
      strict: also where there are no Args, but a line that may do.
    """
    doc = inspect.getdoc(function) or ""
    if not doc:
        return ["anything"]
    if not strict and "Args:" not in doc:
        return []
    told = r"^ *[\w, *]*\b{0}\b[\w, *]*:|`[^`]*\b{0}\b[^`]*`"
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return [name for name in names if not re.search(told.format(name), doc, re.MULTILINE)]
