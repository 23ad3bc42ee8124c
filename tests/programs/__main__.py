"""``python -m tests.programs --examples 10000 --seed 1``: many programs, failures as scripts."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import torch

from tests.programs import compiled, interpreted
from tests.programs.search import Search, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=12, help="instructions at most")
    parser.add_argument("--whole", action="store_true", help="compile, run and measure each")
    parser.add_argument("--out", type=Path, default=Path("failed-programs"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    search = Search(compiled.check if arguments.whole else interpreted.check)
    options = {"memory_budget": "75% of default"} if arguments.whole else {}

    def told(kind: str) -> None:
        path = write(arguments.out, kind, *search.smallest[kind], options)
        print(f"{search.examples:6} {kind}: {path}", flush=True)

    started = time.monotonic()
    search.run(arguments.examples, arguments.seed * 1_000_000, arguments.size, told)
    print(f"{search.examples} programs in {time.monotonic() - started:.0f} s")
    for outcome, count in search.outcomes.most_common():
        print(f"{count:6} {outcome}")
    print(f"{len(search.operators)} operators; least: {search.operators.most_common()[:-9:-1]}")
    return 1 if search.smallest else 0


if __name__ == "__main__":
    raise SystemExit(main())
