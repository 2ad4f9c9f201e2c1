"""Solve a program built with PuLP: HiGHS by default, PuLP's bundled CBC as the fallback.

The relaxation is nearly always integral, so it is solved first and rounded; branching starts only if the
rounded plan is farther from the bound than the gap asked for.

On large programs the simplex method may take a minute where there are many equally good choices (axes of equal links).
They are *approached* first. A first-order method (PDLP: Applegate et al., NeurIPS 2021) finds rough duals ``y`` in a
second or two. All variables lie in [0, 1], so whatever ``y`` is,

    y b + sum_j min(0, c_j - y A_j)

is a bound (weak duality; inequalities need the right sign of ``y``). Over the few columns that these duals do not price
out, simplex then takes a fraction of a second, and what it finds is feasible for the whole program.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import highspy
import numpy as np
import pulp

from autopar.errors import OptionError, SolverError, nearest

SOLVERS = ("highs", "cbc")

_LARGE = 20_000  # variables
_LARGE_AGAIN = 80_000  # ... of a program that is solved at several prices: there simplex begins where it ended
_ROUGH = 0.2  # of the gap asked for: relative tolerance of the first-order method
_ROUNDS = 4_000  # of that method: where it takes more, simplex is faster
_DEAR = 1e-5  # of the objective: columns whose reduced cost is above that are priced out
_USED = 1e-4  # ... unless the rough solution uses them so much
_TOLERANCES = (
    "primal_feasibility_tolerance",
    "dual_feasibility_tolerance",
    "pdlp_optimality_tolerance",
    "kkt_tolerance",
)


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


class _SilentHighs(highspy.Highs):
    """HiGHS 1.16 greets on standard output as soon as its constructor enables callbacks; that is where results go."""

    def enableCallbacks(self) -> None:  # noqa: N802 (the name is HiGHS')
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


class HighsProgram:
    """A PuLP problem handed to HiGHS once. Rows that PuLP gains later are added; the basis is kept."""

    def __init__(self, problem: pulp.LpProblem) -> None:
        self._problem = problem
        self._variables = problem.variables()
        self._index = {v: i for i, v in enumerate(self._variables)}
        cost = np.zeros(len(self._variables))
        for v, c in problem.objective.items():
            cost[self._index[v]] = c
        self.scale = _scale(cost)
        self._cost = self._charged = cost * self.scale
        rows = problem.constraints()
        starts, columns, coefficients, lower, upper = [0], [], [], [], []
        for row in rows:
            columns.extend([self._index[v] for v in row])
            coefficients.extend(row.values())
            starts.append(len(columns))
            low, high = _sides(row)
            lower.append(low)
            upper.append(high)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(cost), len(lower)
        lp.col_cost_ = self._cost
        lp.col_lower_ = np.array([v.lowBound or 0.0 for v in self._variables])
        lp.col_upper_ = np.array([highspy.kHighsInf if v.upBound is None else v.upBound for v in self._variables])
        lp.row_lower_, lp.row_upper_ = np.array(lower), np.array(upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        lp.a_matrix_.index_ = np.array(columns, dtype=np.int32)
        lp.a_matrix_.value_ = np.array(coefficients)
        self._lp = lp
        self._rows = len(rows)  # of the problem, that were handed on
        self._extra = 0  # of these, rows that are no part of ``lp``
        self._upper = np.array(lp.col_upper_)
        self._integers = np.flatnonzero([v.cat == pulp.LpInteger for v in self._variables]).astype(np.int32)
        self._solution = self._duals = np.zeros(0)
        self._highs = _SilentHighs()
        self._highs.setOptionValue("threads", 1)
        self._highs.passModel(lp)

    def force(self, forbidden: Collection[pulp.LpVariable]) -> None:
        """Let variables be 0, in place of those forbidden before; rows added since it was built are lifted."""
        upper = np.array(self._lp.col_upper_)
        upper[[self._index[v] for v in forbidden]] = 0.0
        for k in np.flatnonzero(upper != self._upper):
            self._variables[k].upBound = float(upper[k])
        self._upper = upper
        n = len(upper)
        self._highs.changeColsBounds(n, np.arange(n, dtype=np.int32), np.zeros(n), upper)
        if self._extra:
            first = self._lp.num_row_
            self._highs.deleteRows(self._extra, np.arange(first, first + self._extra, dtype=np.int32))
        self._extra, self._rows = 0, self._problem.numConstraints()

    def charge(self, extra: Mapping[pulp.LpVariable, float]) -> None:
        """Let variables cost more than PuLP knows; replaces what was charged before."""
        cost = self._cost.copy()
        for v, c in extra.items():
            cost[self._index[v]] += c * self.scale
        n = len(cost)
        self._charged = cost
        self._highs.changeColsCost(n, np.arange(n, dtype=np.int32), cost)

    def approachable(self, *, again: bool) -> bool:
        """Whether :meth:`approach` may be worth its while: the program is large, and no row was added to it.

        Args:
          again: it will be solved again, at other prices.
        """
        large = len(self._cost) > (_LARGE_AGAIN if again else _LARGE)
        return large and not self._extra and self._rows == self._problem.numConstraints()

    def approach(self, time_limit_s: float, gap: float) -> Outcome:
        """A solution of the linear relaxation close to the best, and a proven bound; see the module docstring.

        Args:
          time_limit_s: wall time.
          gap: relative distance to the bound that is asked for.
        """
        begin = time.perf_counter()
        self._kinds(highspy.HighsVarType.kContinuous)
        rough = self._roughly(time_limit_s, max(_ROUGH * gap, 1e-5))
        if not rough.values:
            return rough
        bound, reduced = self._weak_duality(np.array(self._highs.getSolution().row_dual))
        free = (self._solution > _USED) | (reduced < _DEAR * abs(self._charged @ self._solution))
        n = len(free)
        upper = self._upper
        every = np.arange(n, dtype=np.int32)
        self._highs.changeColsBounds(n, every, np.zeros(n), np.where(free, upper, 0.0))
        found = self._run(time_limit_s, integers=False)
        self._highs.changeColsBounds(n, every, np.zeros(n), upper)
        self._highs.clearSolver()  # of the whole program, that basis is a bad beginning
        self._duals = reduced
        return replace(found, bound=bound / self.scale, solve_s=time.perf_counter() - begin)

    def _roughly(self, time_limit_s: float, tolerance: float) -> Outcome:
        """The relaxation by the first-order method."""
        highs = self._highs
        before = {name: value for name in _TOLERANCES for _, value in [highs.getOptionValue(name)]}
        for name in _TOLERANCES:
            highs.setOptionValue(name, tolerance)
        highs.setOptionValue("pdlp_iteration_limit", _ROUNDS)
        highs.setOptionValue("solver", "pdlp")
        outcome = self._run(time_limit_s, integers=False)
        highs.setOptionValue("solver", "choose")
        for name, value in before.items():
            highs.setOptionValue(name, value)
        return outcome

    def _weak_duality(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        """The bound that duals give, whatever they are, and their reduced costs."""
        lp = self._lp
        low, high = np.array(lp.row_lower_), np.array(lp.row_upper_)
        y = np.where(np.isinf(low), np.minimum(y, 0.0), np.where(np.isinf(high), np.maximum(y, 0.0), y))
        per_entry = np.repeat(y, np.diff(lp.a_matrix_.start_)) * lp.a_matrix_.value_
        reduced = self._charged - np.bincount(lp.a_matrix_.index_, per_entry, minlength=len(self._charged))
        sides = np.where(y > 0, np.where(np.isinf(low), 0.0, low), np.where(np.isinf(high), 0.0, high))
        return float(y @ sides + np.minimum(reduced, 0.0) @ self._upper), reduced

    def relax(self, time_limit_s: float) -> Outcome:
        """Solve the linear relaxation, starting from the last basis."""
        self._sync()
        self._kinds(highspy.HighsVarType.kContinuous)
        found = self._run(time_limit_s, integers=False)
        self._duals = np.array(self._highs.getSolution().col_dual)
        return found

    def dive(self, time_limit_s: float, gap: float) -> Outcome:
        """Keep the options on which the last relaxation is decided, and branch on the others alone.

        The bound of the outcome is that of the smaller program: it proves nothing about the whole.
        """
        x = self._solution[self._integers]
        low, high = np.where(x > 1 - 1e-6, 1.0, 0.0), np.where(x < 1e-6, 0.0, 1.0)
        n = len(self._integers)
        self._highs.changeColsBounds(n, self._integers, low, high)
        outcome = self.branch(time_limit_s, gap)
        self._highs.changeColsBounds(n, self._integers, np.zeros(n), self._upper[self._integers])
        return outcome

    def branch(self, time_limit_s: float, gap: float) -> Outcome:
        """Solve with integers to a relative gap."""
        self._sync()
        self._kinds(highspy.HighsVarType.kInteger)
        self._highs.setOptionValue("mip_rel_gap", gap)
        self._highs.setOptionValue("mip_abs_gap", 1e-9)
        return self._run(time_limit_s, integers=True)

    def reduced_costs(self) -> dict[str, float]:
        """Of the integer variables at the last relaxation: how much the objective grows per unit, at the least."""
        if len(self._duals) != len(self._variables):
            return {}
        return {self._variables[i].name: float(self._duals[i]) / self.scale for i in self._integers}

    def _sync(self) -> None:
        for row in self._problem.constraints()[self._rows :]:
            columns = np.array([self._index[v] for v in row], dtype=np.int32)
            self._highs.addRow(*_sides(row), len(columns), columns, np.array(list(row.values())))
            self._rows += 1
            self._extra += 1

    def _kinds(self, kind: highspy.HighsVarType) -> None:
        kinds = np.full(len(self._integers), int(kind), dtype=np.uint8)
        self._highs.changeColsIntegrality(len(kinds), self._integers, kinds)

    def _run(self, time_limit_s: float, *, integers: bool) -> Outcome:
        begin = time.perf_counter()
        self._highs.setOptionValue("time_limit", max(time_limit_s, 0.1) + self._highs.getRunTime())
        self._highs.run()
        status = self._highs.getModelStatus()
        info = self._highs.getInfo()
        seconds = time.perf_counter() - begin
        known = highspy.HighsModelStatus
        if status in (known.kInfeasible, known.kUnboundedOrInfeasible):
            return Outcome("infeasible", {}, np.inf, False, seconds)
        x = np.array(self._highs.getSolution().col_value)
        has = len(x) == len(self._variables) and info.primal_solution_status == 2
        bound = (info.mip_dual_bound if integers else info.objective_function_value) / self.scale
        if status != known.kOptimal and not integers:
            bound = -np.inf
        self._solution = x
        values = {v.name: float(value) for v, value in zip(self._variables, x, strict=True)} if has else {}
        integral = has and bool(np.all(np.abs(x - np.round(x))[self._integers] < 1e-5))
        return Outcome("optimal" if status == known.kOptimal else "time limit", values, bound, integral, seconds)


def _sides(row: pulp.LpConstraint) -> tuple[float, float]:
    right = -row.constant
    low = right if row.sense != pulp.LpConstraintLE else -highspy.kHighsInf
    return low, right if row.sense != pulp.LpConstraintGE else highspy.kHighsInf


def solve_cbc(
    problem: pulp.LpProblem, time_limit_s: float, gap: float, extra: Mapping[pulp.LpVariable, float]
) -> Outcome:
    """Solve with the CBC that PuLP carries; ``extra`` is charged on top of the objective.

    Raises:
      SolverError: this installation of PuLP has no CBC for this machine.
    """
    with warnings.catch_warnings():  # PuLP 4 moves its CBC into an extra; until then this is the one it carries
        warnings.simplefilter("ignore", DeprecationWarning)
        solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=gap or None)
    if not solver.available():
        raise SolverError("solver 'cbc' was asked for, but PuLP has no CBC here. Use Options(solver='highs').")
    begin = time.perf_counter()
    own = problem.objective
    problem.setObjective(own + pulp.LpAffineExpression(extra))
    problem.solve(solver)
    bound = pulp.value(problem.objective)
    problem.setObjective(own)
    seconds = time.perf_counter() - begin
    if problem.status == pulp.LpStatusInfeasible:
        return Outcome("infeasible", {}, np.inf, False, seconds)
    values = {v.name: v.varValue for v in problem.variables() if v.varValue is not None}
    optimal = problem.sol_status == pulp.LpSolutionOptimal
    # CBC's bound does not come back through PuLP: optimal means within the gap, anything else proves nothing.
    bound = bound * (1 - gap) if optimal else -np.inf
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
