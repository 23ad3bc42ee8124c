"""Every bad option is answered by name: the option, what was given, what is possible."""

from __future__ import annotations

import math

import pytest

from satcompile.errors import OptionError, SatcompileError
from satcompile.options import MemoryBudget, Options, parse, refuse_mode

GIB = 2**30


def answer(options: object) -> str:
    with pytest.raises(OptionError) as raised:
        parse(options)
    return str(raised.value)


def assert_says(message: str, *parts: str) -> None:
    assert [part for part in parts if part not in message] == [], message


# -- valid forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [None, {}])
def test_no_options_are_the_defaults(options):
    assert parse(options) == Options()
    assert parse(options).memory_budget is None


@pytest.mark.parametrize(
    ("asked", "num_bytes"),
    [
        (1, 1),
        (24 * GIB, 24 * GIB),
        ("24GiB", 24 * GIB),
        ("24gib", 24 * GIB),
        ("24 GiB", 24 * GIB),
        ("1.5GiB", GIB * 3 // 2),
        ("800MB", 800_000_000),
        ("800MiB", 800 * 2**20),
        ("4096", 4096),
    ],
)
def test_a_budget_in_bytes(asked, num_bytes):
    budget = parse({"memory_budget": asked}).memory_budget
    assert budget == MemoryBudget(str(asked), num_bytes=num_bytes)


@pytest.mark.parametrize(
    ("asked", "share"),
    [("60% of default", 0.6), ("12.5%  of DEFAULT", 0.125), (" 120 % of default ", 1.2)],
)
def test_a_budget_as_a_share_of_the_default(asked, share):
    budget = parse({"memory_budget": asked}).memory_budget
    assert budget is not None
    assert budget.share == pytest.approx(share)
    assert (budget.num_bytes, budget.auto) == (None, False)


@pytest.mark.parametrize("asked", ["auto", "AUTO", " auto "])
def test_a_budget_of_whatever_is_free(asked):
    assert parse({"memory_budget": asked}).memory_budget == MemoryBudget(asked, auto=True)


@pytest.mark.parametrize(
    ("asked", "num_bytes"), [(0, 0), (5, 5), ("1GiB", GIB), ("0", 0), ("0GiB", 0)]
)
def test_a_reserve_may_be_nothing(asked, num_bytes):
    assert parse({"reserve": asked}).reserve == num_bytes


@pytest.mark.parametrize("names", [["recompute"], ("recompute",), {"recompute"}])
def test_passes_may_be_named_in_any_collection(names):
    assert parse({"disable_passes": names}).disable_passes == ("recompute",)


def test_nothing_to_disable_is_valid():
    assert parse({"disable_passes": []}).disable_passes == ()


def test_inductor_takes_its_own_keys_with_dashes_or_underscores():
    given = {"max-autotune": True, "cpp.threads": 1, "max_fusion_size": 8}
    expected = {"max_autotune": True, "cpp.threads": 1, "max_fusion_size": 8}
    assert parse({"inductor": given}).inductor == expected


def test_the_cost_model_and_no_sparsity_may_be_said():
    assert parse({"cost_model": "analytic", "sparsity": None}) == Options()


def test_solver_effort_is_a_whole_number():
    assert parse({"solver_effort": 50}).solver_effort == 50


def test_the_given_dict_is_left_alone():
    given = {"memory_budget": "1GiB", "inductor": {"max-autotune": True}}
    parse(given)
    assert given == {"memory_budget": "1GiB", "inductor": {"max-autotune": True}}


# -- unknown ---------------------------------------------------------------------------------


def test_an_unknown_option_names_the_nearest_and_all_others():
    message = answer({"memory_bugdet": "6GiB"})
    assert_says(message, "'memory_bugdet'", "Did you mean 'memory_budget'?")
    assert_says(message, *(repr(name) for name in Options.model_fields))


def test_an_option_like_no_other_has_no_nearest():
    message = answer({"zzz": 1})
    assert_says(message, "'zzz'", "'memory_budget'")
    assert "Did you mean" not in message


def test_an_option_that_is_not_text_is_unknown():
    assert_says(answer({3: 1}), "3", "'memory_budget'")


@pytest.mark.parametrize("options", ["24GiB", 24, ["memory_budget"], True])
def test_options_that_are_no_dict(options):
    assert_says(answer(options), repr(options), "dict", "memory_budget")


# -- budgets ---------------------------------------------------------------------------------

FORMS = ("bytes as an int", "6GiB", "800MB", "60% of default", "auto")


@pytest.mark.parametrize(
    "asked",
    [
        "-1GB", "12 apples", "", "six GiB", "60%", "-60% of default", "60% of defaults", "of default",
        "nan", "inf", "1e9", "1,5GiB", "6GiB or so", "6-8GiB", "GiB", 0, -5, "0", "0GiB", True, False, 8e9, math.nan, math.inf,
        [1], {"bytes": 1}, 1j, b"6GiB",
    ],
)  # fmt: skip
def test_an_impossible_budget_is_answered_with_what_is_possible(asked):
    assert_says(answer({"memory_budget": asked}), "'memory_budget'", repr(asked), *FORMS)


@pytest.mark.parametrize("asked", ["0% of default", "0.0 % of default"])
def test_a_share_of_nothing_is_refused(asked):
    assert_says(answer({"memory_budget": asked}), "'memory_budget'", repr(asked), "60% of default")


@pytest.mark.parametrize(
    "asked", ["-1GB", "12 apples", "10%", -5, True, False, 1.5, 0.0, math.nan, None, [0]]
)
def test_an_impossible_reserve(asked):
    assert_says(answer({"reserve": asked}), "'reserve'", repr(asked), "bytes as an int", "6GiB")


def test_what_a_reserve_may_be_includes_nothing_at_all():
    # 0 is valid, so that no answer may say otherwise.
    assert "above 0" not in answer({"reserve": -5})


def test_the_forms_of_a_reserve_are_not_those_of_a_budget():
    message = answer({"reserve": "auto"})
    assert_says(message, "'reserve'", "'auto'")
    assert "60% of default" not in message


# -- the other options -----------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0.3, True, "dense", ["density", 0.3]])
def test_sparsity_that_is_no_dict_is_shown_one(asked):
    assert_says(answer({"sparsity": asked}), "'sparsity'", repr(asked), "{'density': 0.3}")


@pytest.mark.parametrize("asked", ["profile", "analytical", None, True, 3])
def test_another_cost_model_is_refused_with_the_one_there_is(asked):
    assert_says(answer({"cost_model": asked}), "'cost_model'", repr(asked), "'analytic'")


@pytest.mark.parametrize("asked", [0, -1, True, 1.5, math.nan, "high", None])
def test_an_impossible_effort(asked):
    assert_says(answer({"solver_effort": asked}), "'solver_effort'", repr(asked), "from 1 on")


@pytest.mark.parametrize("asked", ["recompute", 3, None, {"recompute": True}, True])
def test_passes_that_are_no_list(asked):
    message = answer({"disable_passes": asked})
    assert_says(message, "'disable_passes'", repr(asked), "list", "'recompute'")


def test_a_pass_that_does_not_exist_names_the_nearest():
    message = answer({"disable_passes": ["recompue"]})
    assert_says(message, "'disable_passes'", "'recompue'", "Did you mean 'recompute'?")


@pytest.mark.parametrize("name", ["zzz", 3, None])
def test_a_pass_like_no_other_lists_those_there_are(name):
    message = answer({"disable_passes": [name]})
    assert_says(message, "'disable_passes'", repr(name), "'recompute'")
    assert "Did you mean" not in message


@pytest.mark.parametrize("asked", ["max_autotune", ["max_autotune"], True, None, 3])
def test_inductor_configuration_that_is_no_dict(asked):
    assert_says(answer({"inductor": asked}), "'inductor'", repr(asked), "dict", "max_autotune")


def test_an_unknown_key_of_inductor_names_the_nearest():
    message = answer({"inductor": {"max_autotun": True}})
    assert_says(message, "'inductor'", "'max_autotun'", "Did you mean 'max_autotune'?")


@pytest.mark.parametrize("key", ["custom_partitioner_fn", "custom-partitioner-fn"])
def test_inductor_may_not_bring_a_partitioner_of_its_own(key):
    # Ours would replace it, and an option is never silently ignored.
    assert_says(answer({"inductor": {key: None}}), "'inductor'", "custom_partitioner_fn")


def test_a_budget_without_the_pass_that_keeps_it_is_refused():
    message = answer({"memory_budget": "6GiB", "disable_passes": ["recompute"]})
    assert_says(message, "'memory_budget'", "'recompute'", "'disable_passes'")


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead", "default"])
def test_a_mode_is_refused_with_the_option_that_replaces_it(mode):
    with pytest.raises(OptionError) as raised:
        refuse_mode(mode)
    assert_says(str(raised.value), repr(mode), "mode", "'inductor'", "max_autotune")


def test_no_mode_is_no_mistake():
    refuse_mode(None)


def test_an_option_error_is_a_value_error_of_ours():
    with pytest.raises(ValueError) as raised:
        parse({"zzz": 1})
    assert isinstance(raised.value, SatcompileError)
