"""The command line: what it accepts, what it answers, and its exit codes."""

from __future__ import annotations

import pytest

from satcompile.commands import cli, demo
from satcompile.errors import OptionError


def exit_code(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    return stopped.value.code


def test_help_names_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    assert "demo" in capsys.readouterr().out


def test_help_of_the_demo_shows_each_option_with_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("demo", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("--steps", "--layers", "--budget"):
        assert name in text
    assert "(default: 60% of default)" in text


def test_defaults_of_the_command_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[demo.Settings] = []
    monkeypatch.setattr(demo, "run", lambda settings: asked.append(settings) or 0)
    assert cli.main(["demo"]) == 0
    assert asked == [demo.Settings()]


def test_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[demo.Settings] = []
    monkeypatch.setattr(demo, "run", lambda settings: asked.append(settings) or 0)
    assert cli.main(["demo", "--steps", "7", "--layers", "2", "--budget", "40MiB"]) == 0
    assert asked == [demo.Settings(steps=7, layers=2, budget="40MiB")]


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        ((), "command"),
        (("train",), "'train'"),
        (("demo", "--steps", "2"), "'2'; it takes a whole number from 3 on"),
        (("demo", "--steps", "many"), "'many'"),
        (("demo", "--layers", "0"), "'0'; it takes a whole number from 1 on"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_possible(
    argv: tuple[str, ...], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*argv) == 2
    assert culprit in capsys.readouterr().err


def test_an_error_is_one_paragraph_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(settings: demo.Settings) -> int:
        raise OptionError("the budget cannot be.\n\nA hint of Dynamo's.")

    monkeypatch.setattr(demo, "run", refuse)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "satcompile: the budget cannot be.\n"
