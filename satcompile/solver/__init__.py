"""Rematerialization: what to keep and what to compute again, within a budget of bytes.

Knows nothing of torch::

    from satcompile.solver import Problem, solve

    problem = Problem.load("resnet50.json")
    schedule = solve(problem, budget_bytes=problem.peak_bytes * 8 // 10)
    schedule.sequence, schedule.peak_bytes, schedule.extra_time, schedule.bound_extra_time
"""

from satcompile.solver.graphs.problem import Infeasible, Problem, ProblemError
from satcompile.solver.graphs.race import Progress
from satcompile.solver.graphs.schedule import Schedule
from satcompile.solver.graphs.solve import solve

__all__ = ["Infeasible", "Problem", "ProblemError", "Progress", "Schedule", "solve"]
