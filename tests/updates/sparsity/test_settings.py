"""What may be asked for, and what schedules mean."""

from __future__ import annotations

from typing import Any

import pytest

from satcompile import OptionError, Sparsity
from satcompile.options import parse


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sparsity": 0.3}, ["takes a dict", "'density': 0.3"]),
        ({"sparsity": {}}, ["needs a density"]),
        ({"sparsity": {"densty": 0.3}}, ["no 'densty'", "Did you mean 'density'"]),
        ({"sparsity": {"density": 0}}, ["density is 0", "above 0 and up to 1"]),
        ({"sparsity": {"density": 1.5}}, ["1.5"]),
        ({"sparsity": {"density": True}}, ["True"]),
        ({"sparsity": {"density": "0.3"}}, ["'0.3'"]),
        ({"sparsity": {"density": {}}}, ["empty mapping"]),
        ({"sparsity": {"density": {-1: 0.3}}}, ["-1"]),
        ({"sparsity": {"density": {0: 2.0}}}, ["density at step 0 is 2.0"]),
        ({"sparsity": {"density": 0.3, "block": 0}}, ["block is 0", "from 1 on"]),
        ({"sparsity": {"density": 0.3, "interval": 1.5}}, ["interval is 1.5"]),
        ({"sparsity": {"density": 0.3, "warmup_steps": -1}}, ["warmup_steps is -1", "from 0 on"]),
        ({"sparsity": {"density": 0.3, "score": "taylor"}}, ["'taylor'", "'movement'"]),
        ({"sparsity": {"density": 0.3, "score_memory": 1}}, ["score_memory is 1", "below 1"]),
        ({"sparsity": {"density": 0.3, "forward_density": 0.5}}, ["0.5, above the density of 0.3"]),
        ({"sparsity": {"density": {0: 1.0, 9: 0.2}, "forward_density": 0.3}}, ["of 0.2"]),
        ({"sparsity": {"density": 0.3}, "disable_passes": ["sparse_gradients"]}, ["needs the pass"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(given: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as refused:
        parse(given)
    for word in words:
        assert word in str(refused.value)


def test_a_dict_and_an_object_are_the_same() -> None:
    assert parse({"sparsity": {"density": 0.3, "block": 64}}).sparsity == Sparsity(0.3, block=64)
    assert parse({"sparsity": Sparsity(0.3)}).sparsity == Sparsity(0.3)
    assert parse({}).sparsity is None


def test_generated_code_does_not_depend_on_how_much_is_trained() -> None:
    def key(**settings: Any) -> str:
        return parse({"sparsity": settings}).code_key

    assert key(density=0.3) == key(density=0.9, interval=7, score="fisher", warmup_steps=3)
    assert key(density=0.3) == key(density=lambda step: 0.5)
    assert key(density=0.3) != key(density=0.3, block=64)
    assert key(density=0.3) != key(density=0.3, forward_density=0.2)
    assert key(density=0.3) != parse({}).code_key


def test_a_mapping_is_linear_between_its_steps() -> None:
    density = Sparsity({100: 1.0, 200: 0.2}).density_at
    assert [density(step) for step in (0, 100, 150, 200, 999)] == pytest.approx(
        [1.0, 1.0, 0.6, 0.2, 0.2]
    )


def test_a_function_is_asked_and_checked() -> None:
    settings = Sparsity(lambda step: 1.0 - step / 10)
    assert settings.density_at(4) == pytest.approx(0.6)
    with pytest.raises(OptionError, match=r"density\(10\) is 0"):
        settings.density_at(10)


@pytest.mark.parametrize(
    ("warmup", "chosen_after"), [(0, [0, 4, 8]), (1, [0, 4, 8]), (3, [2, 6, 10])]
)
def test_tiles_are_chosen_after_the_dense_steps_and_then_at_every_interval(
    warmup: int, chosen_after: list[int]
) -> None:
    settings = Sparsity(0.3, interval=4, warmup_steps=warmup)
    assert [step for step in range(12) if settings.chooses_after(step)] == chosen_after
    for step in range(9):
        assert settings.next_choice(step) == min(s for s in chosen_after if s >= step)


def test_settings_can_be_told_apart_by_hash() -> None:
    same = {Sparsity({0: 1.0, 5: 0.3}), Sparsity({0: 1.0, 5: 0.3}), Sparsity({0: 1.0, 5: 0.4})}
    assert len(same) == 2
