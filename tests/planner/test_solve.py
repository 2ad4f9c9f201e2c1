"""What solving must not do besides."""

import subprocess
import sys

SOLVE = """
import pulp
from autopar.planner.solve import HighsProgram

problem = pulp.LpProblem()
x = problem.add_variable("x", 0, 1, pulp.LpInteger)
problem += 2 * x
problem += x >= 0.5
program = HighsProgram(problem)
program.relax(10.0), program.branch(10.0, 0.0)
"""


def test_nothing_is_printed():
    """The solver writes past Python's standard output, into what `--json` prints."""
    done = subprocess.run([sys.executable, "-c", SOLVE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
