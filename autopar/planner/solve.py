"""Solve a program built with PuLP: HiGHS by default, PuLP's bundled CBC as the fallback.

The relaxation is nearly always integral, so it is solved first and rounded; branching starts only if the
rounded plan is farther from the bound than the gap asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import highspy
import numpy as np
import pulp

from autopar.errors import OptionError, SolverError, nearest

SOLVERS = ("highs", "cbc")

Choose = Callable[[Mapping[int, np.ndarray]], float]


@dataclass(frozen=True)
class Outcome:
    """What a solver found.

    Attributes:
      status: ``optimal``, ``time limit``, ``infeasible``.
      values: variable name -> value; empty when nothing was found.
      bound: proven lower bound on the objective (of the relaxation or of branch and bound).
      integral: whether ``values`` are integral.
      solve_s: wall time, seconds.
    """

    status: str
    values: Mapping[str, float]
    bound: float
    integral: bool
    solve_s: float


class HighsProgram:
    """A PuLP problem handed to HiGHS once, then solved as a relaxation and, if need be, with integers."""

    def __init__(self, problem: pulp.LpProblem) -> None:
        self._variables = problem.variables()
        index = {v: i for i, v in enumerate(self._variables)}
        cost = np.zeros(len(self._variables))
        for v, c in problem.objective.items():
            cost[index[v]] = c
        self.scale = _scale(cost)
        starts, columns, coefficients, lower, upper = [0], [], [], [], []
        for row in problem.constraints():
            columns.extend([index[v] for v in row])
            coefficients.extend(row.values())
            starts.append(len(columns))
            right = -row.constant
            lower.append(right if row.sense != pulp.LpConstraintLE else -highspy.kHighsInf)
            upper.append(right if row.sense != pulp.LpConstraintGE else highspy.kHighsInf)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(cost), len(lower)
        lp.col_cost_ = cost * self.scale
        lp.col_lower_ = np.array([v.lowBound or 0.0 for v in self._variables])
        lp.col_upper_ = np.array([highspy.kHighsInf if v.upBound is None else v.upBound for v in self._variables])
        lp.row_lower_, lp.row_upper_ = np.array(lower), np.array(upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        lp.a_matrix_.index_ = np.array(columns, dtype=np.int32)
        lp.a_matrix_.value_ = np.array(coefficients)
        self._lp = lp
        self._integers = np.array([v.cat == pulp.LpInteger for v in self._variables])
        self.highs = highspy.Highs()
        self.highs.setOptionValue("output_flag", False)
        self.highs.setOptionValue("threads", 1)
        self.highs.passModel(lp)

    def relax(self, time_limit_s: float) -> Outcome:
        """Solve the linear relaxation."""
        return self._run(time_limit_s, integers=False)

    def branch(self, time_limit_s: float, gap: float, start: np.ndarray | None = None) -> Outcome:
        """Solve with integers to a relative gap."""
        kinds = [highspy.HighsVarType.kInteger if i else highspy.HighsVarType.kContinuous for i in self._integers]
        lp = self._lp
        lp.integrality_ = kinds
        self.highs.passModel(lp)
        self.highs.setOptionValue("mip_rel_gap", gap)
        self.highs.setOptionValue("mip_abs_gap", 1e-9)
        if start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = list(start)
            self.highs.setSolution(solution)
        return self._run(time_limit_s, integers=True)

    def _run(self, time_limit_s: float, *, integers: bool) -> Outcome:
        begin = time.perf_counter()
        self.highs.setOptionValue("time_limit", float(max(time_limit_s, 0.1)) + self.highs.getRunTime())
        self.highs.run()
        status = self.highs.getModelStatus()
        info = self.highs.getInfo()
        seconds = time.perf_counter() - begin
        known = highspy.HighsModelStatus
        if status in (known.kInfeasible, known.kUnboundedOrInfeasible):
            return Outcome("infeasible", {}, np.inf, False, seconds)
        x = np.array(self.highs.getSolution().col_value)
        has = len(x) == len(self._variables) and info.primal_solution_status == 2
        bound = (info.mip_dual_bound if integers else info.objective_function_value) / self.scale
        if status != known.kOptimal and not integers:
            bound = -np.inf
        values = {v.name: float(value) for v, value in zip(self._variables, x, strict=True)} if has else {}
        integral = has and bool(np.all(np.abs(x - np.round(x))[self._integers] < 1e-5))
        return Outcome("optimal" if status == known.kOptimal else "time limit", values, bound, integral, seconds)


def solve_cbc(problem: pulp.LpProblem, time_limit_s: float, gap: float) -> Outcome:
    """Solve with the CBC that PuLP carries.

    Raises:
      SolverError: this installation of PuLP has no CBC for this machine.
    """
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=gap or None)
    if not solver.available():
        raise SolverError("solver 'cbc' was asked for, but PuLP has no CBC here. Use Options(solver='highs').")
    begin = time.perf_counter()
    problem.solve(solver)
    seconds = time.perf_counter() - begin
    if problem.status == pulp.LpStatusInfeasible:
        return Outcome("infeasible", {}, np.inf, False, seconds)
    values = {v.name: v.varValue for v in problem.variables() if v.varValue is not None}
    optimal = problem.sol_status == pulp.LpSolutionOptimal
    # CBC's bound does not come back through PuLP: optimal means within the gap, anything else proves nothing.
    bound = pulp.value(problem.objective) * (1 - gap) if optimal else -np.inf
    return Outcome("optimal" if optimal else "time limit", values, bound, True, seconds)


def check_solver(name: str) -> str:
    """The solver's name, if autopar knows it.

    Raises:
      OptionError: it does not.
    """
    if name not in SOLVERS:
        raise OptionError(f"unknown solver {name!r}: {nearest(name, SOLVERS)}")
    return name


def _scale(cost: np.ndarray) -> float:
    """Bring costs into the range where the solver's absolute tolerances (1e-7) are far below any difference."""
    positive = cost[cost > 1e-11]
    return float(1e3 / positive.mean()) if len(positive) else 1.0
