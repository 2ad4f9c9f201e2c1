"""Why nothing fits: how many bytes are missing, where, who holds them, and what would do."""

from __future__ import annotations

import pulp

from autopar.errors import InfeasibleError
from autopar.mesh import LogicalMesh
from autopar.planner.budget import Budget
from autopar.planner.formulate import Formulation
from autopar.planner.memory import Profile
from autopar.planner.solve import HighsProgram
from autopar.units import bytes_text


class ShortageError(InfeasibleError):
    """No plan fits. ``short_bytes`` is the least number of bytes missing on one device."""

    short_bytes: float = 0.0


def shortage(
    formulation: Formulation, limits: Budget, mesh: LogicalMesh, budget: float, peak: Profile | None
) -> ShortageError:
    """The error for a step that cannot fit into ``budget`` bytes per device on ``mesh``."""
    atoms = formulation.atoms
    points = list(limits.limits) or ([peak.position] if peak else [0])
    need, worst, used = _least_peak(formulation, limits, points)
    need = max(need, float(peak.peak_bytes)) if peak and need <= budget else need
    values = atoms.step.graph.values
    held = ", ".join(f"{_name(formulation, v)} {values[v].shape} {bytes_text(n)}" for v, n in used[:5] if n)
    atom = atoms.atoms[min(worst, len(atoms.atoms) - 1)]
    where = atom.op.where.line if atom.op and atom.op.where.line else atom.name
    short = f"{bytes_text(need - budget)} short" if need > budget else "and no plan found within it"
    error = ShortageError(
        f"{atoms.step.name} does not fit: the smallest peak found on mesh {'x'.join(map(str, mesh.shape))} is "
        f"{bytes_text(need)} per device, the budget is {bytes_text(budget)}: {short}, "
        f"at {where}. Largest holders there, even when split as far as they go: {held}. "
        f"A budget of {bytes_text(need)} would do; so might {mesh.devices * 2} devices, a smaller batch, or "
        "jax.checkpoint."
    )
    error.short_bytes = need - budget
    return error


def _name(formulation: Formulation, v: int) -> str:
    value = formulation.atoms.step.graph.values[v]
    if value.name:
        return value.name
    op = formulation.atoms.atoms[formulation.atoms.producer[v][0]].op
    return f"{op.primitive} ({op.where.line})" if op else f"value {v}"


def _least_peak(
    formulation: Formulation, limits: Budget, points: list[int]
) -> tuple[float, int, list[tuple[int, float]]]:
    """Lower bound on the bytes needed over the given points, the worst point, and the largest values there."""
    problem = pulp.LpProblem("least_peak", pulp.LpMinimize)
    peak = problem.add_variable("peak", 0)
    problem.setObjective(pulp.LpAffineExpression({peak: 1.0}))
    for row in formulation.problem.constraints():
        if not str(row.name).startswith("memory_"):
            problem.addConstraint(row.copy(), row.name)
    forms = {point: limits.terms(point) for point in points}
    scale = max((n for terms in forms.values() for n in terms.values()), default=1.0)
    for point, terms in forms.items():
        scaled = {variable: n / scale for variable, n in terms.items()}
        scaled[peak] = -1.0
        problem.addConstraint(
            pulp.LpConstraint(pulp.LpAffineExpression(scaled), pulp.LpConstraintLE, f"at_{point}", 0.0)
        )
    outcome = HighsProgram(problem).relax(30.0)
    if not outcome.values:
        return 0.0, points[0], []
    usage = {p: sum(n * outcome.values.get(v.name, 0.0) for v, n in terms.items()) for p, terms in forms.items()}
    worst = max(usage, key=lambda p: usage[p])
    return outcome.values["peak"] * scale, worst, limits.smallest(worst)
