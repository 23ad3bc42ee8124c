"""The page of results: how many rows ended how, each architecture, and every row with a fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.coverage.rows import (
    BELOW_FLOOR,
    BUDGETS,
    CLEAN,
    FAULTS,
    KINDS,
    VARIANTS,
    WITHOUT_FIGURES,
    Record,
    key_of,
)

COMPILE_GOAL = 1.5  # of torch.compile's seconds, in the median
_SYMBOLS = {CLEAN: "ok", BELOW_FLOOR: "low", "not applicable": "-", "not installed": "-"}


def page(records: Sequence[Record], facts: dict[str, Any], planned: int) -> str:
    """``planned`` is how many rows there are, run or not."""
    ran = [record for record in records if record["result"] not in WITHOUT_FIGURES]
    names = {record["architecture"] for record in ran}
    made = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
    parts = [
        "# coverage",
        f"Made by `python -m benchmarks.coverage`: {made}. Rows run on other days with other "
        "versions say so in coverage.json.",
        f"{len(ran)} rows of {len(names)} architectures ran; {len(records) - len(ran)} more mean "
        f"nothing for their model, or its package is not installed. {planned - len(records)} of "
        f"{planned} rows never ran.",
        _summary(records),
        _ratios(ran),
        _goals(missed_goals(records)),
        "## Architectures",
        "A row's four budgets in order: " + ", ".join(BUDGETS) + '. "ok" is right, within '
        'budget, as predicted; "low" is a budget below the floor, refused with the floor\'s '
        "bytes; anything else is named. The ratios are medians of the rows: seconds of compiling "
        "and of a step, to torch.compile's.",
        _by_architecture(records),
        "## Rows that are not clean",
        _unclean(records),
    ]
    return "\n\n".join(parts) + "\n"


def missed_goals(records: Sequence[Record]) -> list[str]:
    """Any row with a fault, and compile time in the median."""
    missed = []
    for fault in FAULTS:
        count = sum(fault in record.get("faults", ()) for record in records)
        if count:
            missed.append(f"{fault}: {count} rows")
    ratios = compile_ratios(records)
    if ratios and median(ratios) > COMPILE_GOAL:
        missed.append(f"compile time: {median(ratios):.2f}x in the median, wanted {COMPILE_GOAL}x")
    return missed


def compile_ratios(records: Sequence[Record]) -> list[float]:
    return [
        record["compile_s"] / record["torch_compile_s"]
        for record in records
        if record.get("torch_compile_s")
    ]


def _summary(records: Sequence[Record]) -> str:
    counts: dict[str, Counter[str]] = {variant: Counter() for variant in VARIANTS}
    for record in records:
        counts[record["variant"]][record["result"]] += 1
    lines = [_line(["result", *VARIANTS, "all"]), _line(["---"] * (len(VARIANTS) + 2))]
    for kind in KINDS:
        row = [counts[variant][kind] for variant in VARIANTS]
        if any(row):
            lines.append(_line([kind, *map(str, row), str(sum(row))]))
    return "\n".join(lines)


def _ratios(records: Sequence[Record]) -> str:
    lines = [
        _line(["budget", "rows", "compile, median", "compile, largest", "step, median",
               "step, largest"]),
        _line(["---"] * 6),
    ]  # fmt: skip
    for budget in BUDGETS:
        rows = [record for record in records if record["budget"] == budget]
        compiles = compile_ratios(rows)
        steps = [record["step_ratio"] for record in rows if record.get("step_ratio")]
        if compiles and steps:
            figures = (median(compiles), max(compiles), median(steps), max(steps))
            lines.append(
                _line([budget, str(len(compiles)), *(f"{value:.2f}x" for value in figures)])
            )
    return "\n".join(lines)


def _goals(missed: Sequence[str]) -> str:
    if not missed:
        return "No goal is missed by the rows that ran."
    return "Goals missed:\n\n" + "\n".join(f"- {line}" for line in missed)


def _by_architecture(records: Sequence[Record]) -> str:
    lines = [
        _line(["family", "architecture", "graphs", *VARIANTS, "compile", "step"]),
        _line(["---"] * (len(VARIANTS) + 5)),
    ]
    for family in sorted({record["family"] for record in records}):
        rows = [record for record in records if record["family"] == family]
        for name in sorted({record["architecture"] for record in rows}):
            own = [record for record in rows if record["architecture"] == name]
            steps = [record["step_ratio"] for record in own if record.get("step_ratio")]
            graphs = sorted({record["graphs"] for record in own if record.get("graphs")})
            lines.append(
                _line(
                    [
                        family,
                        name,
                        ", ".join(map(str, graphs)) or "-",
                        *(_cell(own, variant) for variant in VARIANTS),
                        _ratio(compile_ratios(own)),
                        _ratio(steps),
                    ]
                )
            )
    return "\n".join(lines)


def _cell(records: Sequence[Record], variant: str) -> str:
    found = {record["budget"]: record for record in records if record["variant"] == variant}
    texts = [
        _SYMBOLS.get(found[budget]["result"], found[budget]["result"])
        for budget in BUDGETS
        if budget in found
    ]
    return texts[0] if len(set(texts)) == 1 and texts[0] == "-" else ", ".join(texts)


def _ratio(values: Sequence[float]) -> str:
    return f"{median(values):.2f}x" if values else "-"


def _unclean(records: Sequence[Record]) -> str:
    clean = (CLEAN, BELOW_FLOOR, "not applicable", "not installed")
    rows = [record for record in records if record["result"] not in clean]
    if not rows:
        return "None."
    lines = [_line(["row", "result", "detail"]), _line(["---"] * 3)]
    for record in sorted(rows, key=lambda record: (KINDS.index(record["result"]), key_of(record))):
        detail = record.get("detail", "").replace("|", "\\|")
        lines.append(_line([str(key_of(record)), record["result"], detail]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
