"""The solver's benchmark: its problems, its rows, and what it holds to be a miss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import problems, solver
from satcompile.solver import Problem


def test_the_suite_has_problems_of_every_size_with_room_to_save() -> None:
    made = problems.suite()
    sizes = sorted(map(len, made))
    assert sizes[0] <= 100
    assert sum(4_000 <= size <= 10_000 for size in sizes) >= 2
    assert len({problem.name for problem in made}) == len(made)
    for problem in made:
        assert Problem.from_dict(problem.to_dict()) == problem


def test_a_seed_gives_the_same_problem() -> None:
    assert problems.layered(60, seed=3) == problems.layered(60, seed=3)
    assert problems.layered(60, seed=3) != problems.layered(60, seed=4)


def test_a_gradient_reads_gradients_and_what_readers_read() -> None:
    graph = problems.Graph()
    first = graph.add(1, 10)
    second = graph.add(2, 20, first)
    graph.add(3, 1, first, second)
    problem = problems.with_backward(graph).problem("small")
    assert problem.times == (1, 2, 3, 1, 3, 5)
    assert problem.num_bytes == (10, 20, 1, 1, 20, 10)
    assert problem.inputs[3:] == ((2,), (0, 1, 3), (0, 1, 3, 4))


def test_problems_are_saved_solved_and_written(tmp_path: Path) -> None:
    folder, output = tmp_path / "problems", tmp_path / "results"
    problems.save_folder([problems.chain(6), problems.unet(2)], folder)
    budgets = ["--budget", "80%", "floor+50%", "1", "--time-limit", "5", "--no-free-order"]
    assert solver.main([str(folder), *budgets, "--output", str(output)]) == 0
    rows = json.loads((output / "solver.json").read_text())["rows"]
    assert [row["budget"] for row in rows] == ["80%", "floor+50%", "1"] * 2
    assert [row["proven"] for row in rows[2::3]] == ["none fits"] * 2
    for row in rows:
        assert row["proven"] == "none fits" or row["bound_pct"] <= row["extra_pct"] + 1e-3
    assert "chain_6" in (output / "solver.md").read_text()


def test_files_give_their_names(tmp_path: Path) -> None:
    problem = problems.chain(3)
    (tmp_path / "fcn8_b32.json").write_text(json.dumps(problem.to_dict()))
    assert [found.name for found in problems.load_folder(tmp_path)] == ["fcn8_b32"]


@pytest.mark.parametrize(("extra", "misses"), [(2.34, 0), (2.36, 2), (None, 2)])
def test_a_published_schedule_of_less_time_is_a_miss(extra: float | None, misses: int) -> None:
    problem = problems.chain(3)
    row = solver.row_of(problem, "100%", 1.0, seed=0, free_order=False)
    assert (row.extra_pct, row.checkmate) == (0, None)
    row = replace(row, extra_pct=extra, checkmate="2.3 / 22.7", moccasin="2.3 / 9.5")
    assert len(solver.missed_goals([row])) == misses


def test_published_figures_stand_at_the_published_budget_only() -> None:
    problem = replace(problems.layered(20, seed=0), name="random_layered_100")
    rows = [solver.row_of(problem, b, 0.5, seed=0, free_order=False) for b in ("80%", "95%")]
    assert [row.fastsa for row in rows] == ["0.3 / 11.5", None]
