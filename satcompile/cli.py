"""The command ``satcompile``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0: it did what it says. 1: it did not, and the last lines say why. 2: it was called wrongly
    (``argparse`` exits by itself).
    """
    arguments = _parser().parse_args(argv)
    # Not at the top: torch takes seconds to import, and --help needs none of it.
    from satcompile.errors import SatcompileError

    try:
        return _demo(arguments)
    except SatcompileError as error:
        # One paragraph is ours; Dynamo adds hints for its own developers below it.
        print(f"satcompile: {str(error).partition(chr(10) * 2)[0]}", file=sys.stderr)
        return 1


def _demo(arguments: argparse.Namespace) -> int:
    from satcompile.demo import Settings, run

    return run(Settings(steps=arguments.steps, layers=arguments.layers, budget=arguments.budget))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="satcompile", description="Train PyTorch models in less memory."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train a small GPT-2 three ways, and compare memory, loss and time",
        description=(
            "Train a small GPT-2 on Python's own library sources three times from the same seed: "
            "with torch.compile's default, with torch's own activation budget, and with "
            "backend='sat'. Takes one to three minutes on two cores, mostly compilation."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--steps", type=_at_least(3), default=20, help="steps of training for each variant"
    )
    demo.add_argument("--layers", type=_at_least(1), default=4, help="layers of the GPT-2")
    demo.add_argument(
        "--budget",
        default="60% of default",
        help="memory_budget for backend='sat': '40MiB', '60%% of default' and so on",
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """An argument type: a whole number from ``least`` on."""

    def whole_number(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}; it takes a whole number from {least} on")

    return whole_number


if __name__ == "__main__":
    sys.exit(main())
