"""Results as a file that a crash cannot harm: one record a row, the latest kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.coverage.rows import Key, Record, key_of


def load(file: Path) -> dict[Key, Record]:
    if not file.exists():
        return {}
    return {key_of(record): record for record in json.loads(file.read_text())["rows"]}


def save(file: Path, records: Mapping[Key, Record]) -> None:
    """One line a row, so that a row run again is one changed line."""
    lines = ",\n".join(json.dumps(records[key]) for key in sorted(records))
    write_whole(file, f'{{"rows": [\n{lines}\n]}}\n')


def write_whole(file: Path, text: str) -> None:
    """All of it or nothing: readers and later runs never see half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_text(text)
    os.replace(beside, file)
