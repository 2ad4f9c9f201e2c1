"""What hints say of a pipeline: where stages begin, which mesh a stage has, and which units are no longer alike."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.errors import HintError, OptionError
from autopar.ir import Op
from autopar.planner.atoms import Atoms, build_atoms
from autopar.planner.hinted import check_hints
from autopar.planner.hints import Hint
from autopar.planner.options import Options
from autopar.planner.parts import find_part
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.weigh import MATMULS

_PLACES = 12


@dataclass(frozen=True)
class StageHints:
    """Hints, in terms of units.

    Attributes:
      begins: units at which a stage must begin -> the hint that says so.
      meshes: units whose stage has a mesh of that shape -> the hint that says so.
      marks: per unit, what hints are about in it: units of other marks are not planned as one.
    """

    begins: Mapping[int, Hint]
    meshes: Mapping[int, Hint]
    marks: tuple[str, ...]

    def allows(self, first: int, stop: int, devices: int) -> bool:
        """Whether units may be a stage on so many devices."""
        if any(first < unit < stop for unit in self.begins):
            return False
        shapes = {self.meshes[unit].mesh_shape for unit in range(first, stop) if unit in self.meshes}
        return not shapes or (len(shapes) == 1 and math.prod(*shapes) == devices)

    def mesh(self, first: int, stop: int) -> tuple[int, ...] | None:
        """The mesh of a stage of these units, if a hint says so."""
        return next((self.meshes[unit].mesh_shape for unit in range(first, stop) if unit in self.meshes), None)

    def mark(self, first: int, stop: int) -> str:
        """What hints are about in some units; equal for equal units."""
        return "|".join(self.marks[first:stop])

    def check_cuts(self, begins: Sequence[int], names: Sequence[str]) -> None:
        """Check that stages of equal size begin where hints say.

        Args:
          begins: the units at which they begin.
          names: of units, for people.

        Raises:
          OptionError: they do not.
        """
        for unit, hint in self.begins.items():
            if unit not in begins:
                raise OptionError(
                    f"hint '{hint}': {len(begins)} stages of equal size begin at units {_listed(begins)}, and "
                    f"{hint.part!r} begins unit {unit} ({names[unit]}). Ask for max_stages={max(len(begins), 2)} "
                    "instead, whose stages may differ."
                )


def stage_hints(problem: StagedProblem, options: Options) -> StageHints:
    """What the hints of options say of the units of a step.

    Raises:
      OptionError: a hint names nothing, or a place where no stage can begin.
      HintError: two hints contradict each other, or the number of stages.
    """
    units, hints = problem.units, options.known
    if not hints:
        return StageHints({}, {}, ("",) * len(units))
    atoms = build_atoms(problem.step)
    check_hints(atoms, hints)
    places = {hint: _places(problem, atoms, hint) for hint in hints}
    begins, meshes = dict[int, Hint](), dict[int, Hint]()
    marks: list[set[str]] = [set() for _ in units]
    for number, hint in enumerate(hints):
        if hint.kind == "stage":
            begins.setdefault(_begin(problem, hint, places[hint]), hint)
        elif hint.kind == "mesh":
            _add_mesh(meshes, hint, {unit for unit, _ in places[hint]})
        else:
            for unit, at in places[hint]:
                marks[unit].add(f"{number}@{at}")
    _check_number(begins, options)
    for hint in meshes.values() if options.mesh is not None else ():
        if hint.mesh_shape != options.mesh:
            raise HintError(
                f"the hint '{hint}' contradicts mesh={options.mesh}, which is that of every stage. Leave one out."
            )
    return StageHints(begins, meshes, tuple(",".join(sorted(mark)) for mark in marks))


def _places(problem: StagedProblem, atoms: Atoms, hint: Hint) -> list[tuple[int, int]]:
    """Where the forward ops of what a hint names stand: unit, and position in it."""
    begins = [unit.begin for unit in problem.units]
    ids = {op.id for index in find_part(atoms, hint.part, state=hint.words == "zero").work for op in _op(atoms, index)}
    found = []
    for position, op in enumerate(problem.forward):
        if op.id in ids or any(inner.id in ids for region in op.regions for inner in region.walk()):
            unit = bisect.bisect_right(begins, position) - 1
            found.append((unit, position - begins[unit]))
    return found


def _op(atoms: Atoms, index: int) -> Iterator[Op]:
    op = atoms.atoms[index].op
    if op is not None:
        yield op


def _begin(problem: StagedProblem, hint: Hint, places: Sequence[tuple[int, int]]) -> int:
    """The unit that begins with what a hint names.

    Raises:
      OptionError: there is none.
    """
    if places:
        unit, at = places[0]
        stop = problem.units[unit + 1].begin if unit + 1 < len(problem.units) else len(problem.forward)
        ops = problem.forward[problem.units[unit].begin : stop]
        if not any(map(_heavy, ops[:at])):
            return unit
        if any(u == unit + 1 for u, _ in places) and not any(map(_heavy, ops[at:])):
            return unit + 1
    lines = [f"{k} ({name})" for k, name in enumerate(unit_names(problem))]
    shown = ", ".join(lines[:_PLACES]) + (", ..." if len(lines) > _PLACES else "")
    inside = f"which stands inside unit {places[0][0]}" if places else "which the forward pass does not read"
    raise OptionError(
        f"hint '{hint}': no stage can begin at {hint.part!r}, {inside}. Stages begin where units do: {shown}. "
        "Mark another place in the step: x = autopar.stage_boundary(x)."
    )


def unit_names(problem: StagedProblem) -> list[str]:
    """Where each unit begins, for people."""
    wheres = [problem.forward[unit.begin].where for unit in problem.units]
    return [where.scope or where.line for where in wheres]


def _heavy(op: Op) -> bool:
    return op.loop is not None or op.primitive in MATMULS


def _add_mesh(meshes: dict[int, Hint], hint: Hint, units: set[int]) -> None:
    for unit in units:
        other = meshes.setdefault(unit, hint)
        if other.words != hint.words:
            raise HintError(
                f"the hints '{other}' and '{hint}' contradict each other: both are about unit {unit}. Leave one out."
            )


def _check_number(begins: Mapping[int, Hint], options: Options) -> None:
    least, most = 1 + len(begins.keys() - {0}), options.stages or options.max_stages
    if least > most:
        said = "stages" if options.stages else "max_stages"
        raise HintError(
            f"the hints {' and '.join(repr(str(h)) for h in begins.values())} make {least} stages, and {said}={most} "
            f"allows {most}. Ask for max_stages={least} or more, or leave a hint out."
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


__all__ = ["StageHints", "stage_hints", "unit_names"]
