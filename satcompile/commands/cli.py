"""The command ``satcompile``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0: the command did what it says. 1: it did not, and the last lines say why. 2: the call was
    wrong (``argparse`` exits by itself).
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    # Not at the top: torch takes seconds to import, and --help needs none of it.
    from satcompile.commands.demo import Settings, run
    from satcompile.errors import SatcompileError

    try:
        return run(
            Settings(steps=arguments.steps, layers=arguments.layers, budget=arguments.budget)
        )
    except SatcompileError as error:
        # The first paragraph is ours; Dynamo adds hints for its own developers below it.
        print(f"satcompile: {str(error).partition(chr(10) * 2)[0]}", file=sys.stderr)
        return 1


def _solve(arguments: argparse.Namespace) -> int:
    from satcompile.commands.solve import Settings, run  # no torch, but scipy

    return run(
        Settings(
            path=arguments.problem,
            budget=arguments.budget,
            time_limit_s=arguments.time_limit,
            seed=arguments.seed,
            free_order=arguments.free_order,
            schedule_path=getattr(arguments, "json", None),
        )
    )


def _compare(arguments: argparse.Namespace) -> int:
    from satcompile.errors import SatcompileError
    from satcompile.report.saved import compare_files

    try:
        comparison = compare_files(arguments.before, arguments.after)
        if arguments.output is not None:
            comparison.save(arguments.output)
    except SatcompileError as error:
        print(f"satcompile: {error}", file=sys.stderr)
        return 1
    print(comparison, end="")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    if (arguments.model is None) == (arguments.config is None):
        print("satcompile: plan takes a model, or --config FILE, and not both", file=sys.stderr)
        return 2
    from satcompile.commands.forecast.catalogue import Request
    from satcompile.commands.forecast.command import Settings, run

    return run(
        Settings(
            model=arguments.model,
            config=arguments.config,
            request=Request(arguments.batch, arguments.sequence, arguments.dtype, arguments.train),
            optimizer=arguments.optimizer,
            device=arguments.device,
            budget=arguments.budget,
            reserve=arguments.reserve,
            in_backward=arguments.in_backward,
            quick=arguments.quick,
            json_path=arguments.json,
            report_path=arguments.report,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="satcompile", description="Train PyTorch models in less memory."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands)
    _add_plan(commands)
    _add_compare(commands)
    _add_solve(commands)
    return parser


def _add_demo(commands: Any) -> None:
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
    demo.set_defaults(run=_demo)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a training step needs and what would be decided, without running it",
        description=(
            "Trace a training step on fake tensors, and plan it for a device that need not be there: "
            "what it needs, what fits, at what price, and the largest batch. MODEL is a name (gpt2, "
            "gpt2-medium, gpt2-large, gpt2-xl, llama-7b, llama-13b, llama-3-8b, bert-base, "
            "bert-large, resnet-50, resnet-152, vit-b, vit-l) or module:function, a function of "
            "yours that returns the model and its inputs."
        ),
        epilog="Exit status: 0 the plan fits, 1 it does not or there is none, 2 a wrong call.",
    )
    plan.add_argument("model", nargs="?", metavar="MODEL", help="a name, or module:function")
    plan.add_argument("--config", type=Path, metavar="FILE", help="a configuration of transformers")
    plan.add_argument("--batch", type=_at_least(1), default=4, help="samples (default: 4)")
    plan.add_argument(
        "--sequence", type=_at_least(1), help="tokens of a sample (default: usual for the model)"
    )
    plan.add_argument(
        "--dtype", default="bfloat16", help="of parameters: bfloat16 (default), float16, float32"
    )
    plan.add_argument(
        "--train", default="full", help="full (default), or lora: adapters of rank 16"
    )
    plan.add_argument(
        "--optimizer", default="adamw", help="of torch.optim: adamw (default), sgd, ..., or none"
    )
    plan.add_argument(
        "--device", default="h200",
        help="h200 (default), h100, a100, a100-40gb, l40s, l4, a10, rtx4090, rtx3090 or cpu",
    )  # fmt: skip
    plan.add_argument(
        "--budget", default="auto",
        help="24GiB, '60%% of default', or auto (default): the device's memory less a margin",
    )  # fmt: skip
    plan.add_argument("--reserve", default="0", help="bytes of the budget to keep free")
    plan.add_argument(
        "--in-backward", action="store_true", help="the optimizer steps inside the backward"
    )
    plan.add_argument(
        "--quick", action="store_true", help="without the largest batch and other budgets"
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the plan's figures there")
    plan.add_argument(
        "--report", type=Path, metavar="FILE",
        help="write the report there: a page to read (.html), or data to compare (.json)",
    )  # fmt: skip
    plan.set_defaults(run=_plan)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="say what changed from one saved report to another",
        description=(
            "What is different between two reports that were saved as JSON (report.save, or "
            "satcompile plan --report): two budgets, or two versions of a model."
        ),
    )
    compare.add_argument("before", type=Path, metavar="BEFORE.json")
    compare.add_argument("after", type=Path, metavar="AFTER.json")
    compare.add_argument(
        "--output", type=Path, metavar="FILE", help="write it there, too: .html or .json"
    )
    compare.set_defaults(run=_compare)


def _add_solve(commands: Any) -> None:
    solve = commands.add_parser(
        "solve",
        help="solve a rematerialization problem from a JSON file",
        description=(
            "Find a schedule within a budget that recomputes as little as possible, and prove how "
            "far from the least it can be. The file holds times and bytes of nodes, and edges "
            "between them: docs/solver.md."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    solve.add_argument("problem", type=Path, help="JSON file of the problem")
    solve.add_argument(
        "--budget",
        required=True,
        default=argparse.SUPPRESS,
        help="bytes for what nodes compute: '60%%' of the peak without recomputation, '8GiB', "
        "'800MB', plain bytes, or 'floor+10%%', above the proven floor",
    )
    solve.add_argument("--time-limit", type=_seconds, default=60.0, help="seconds")
    solve.add_argument("--seed", type=_at_least(0), default=0, help="of the local search")
    solve.add_argument(
        "--free-order",
        action="store_true",
        help="first computations may change their order, as far as edges allow",
    )
    solve.add_argument(
        "--json",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write the schedule there",
    )
    solve.set_defaults(run=_solve)


def _at_least(least: int) -> Callable[[str], int]:
    """An argument type: a whole number from ``least`` on."""

    def whole_number(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}; it takes a whole number from {least} on")

    return whole_number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r}; it takes a number of seconds above 0")


if __name__ == "__main__":
    sys.exit(main())
