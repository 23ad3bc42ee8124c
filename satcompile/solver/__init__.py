"""Rematerialization: what to keep and what to compute again, within a budget of bytes.

Knows nothing of torch::

    from satcompile.solver import Problem, solve

    problem = Problem.load("resnet50.json")
    schedule = solve(problem, budget_bytes=problem.peak_bytes * 8 // 10)
    schedule.sequence, schedule.peak_bytes, schedule.extra_time, schedule.bound_extra_time
"""

from satcompile.solver.anytime import Progress, solve
from satcompile.solver.problem import Infeasible, Problem, ProblemError
from satcompile.solver.schedule import Schedule

__all__ = ["Infeasible", "Problem", "ProblemError", "Progress", "Schedule", "solve"]
