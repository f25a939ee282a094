"""Report files: JSON (schema ``eqconv.report/1``), CSV and JUnit XML. Durations are seconds, sizes bytes."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

from eqconv_cli.errors import UsageError
from eqconv_cli.events import CSV_COLUMNS, SCHEMA, Row, RunFinished, TargetRow


def report(
    command: str,
    version: str,
    options: Mapping[str, Any],
    machine: Mapping[str, Any],
    rows: Sequence[Row],
    finished: RunFinished,
) -> dict[str, Any]:
    """The whole run as one object of plain JSON types."""
    counts = Counter(row.status for row in rows)
    summary = {
        "rows": len(rows),
        **{status: counts[status] for status in ("pass", "fail", "error", "skip")},
        "seconds": finished.seconds,
        "interrupted": finished.interrupted,
        **finished.facts,
    }
    content = {
        "schema": SCHEMA,
        "command": command,
        "version": version,
        "options": dict(options),
        "machine": dict(machine),
        "rows": [row_object(row) for row in rows],
        "summary": summary,
    }
    made: dict[str, Any] = plain(content)
    return made


def row_object(row: Row | TargetRow) -> dict[str, Any]:
    """A row without the fields that do not apply to it; a number that is not finite becomes null."""
    kept = {name: value for name, value in asdict(row).items() if value not in (None, (), {})}
    made: dict[str, Any] = plain(kept)
    return made


def write_json(content: Mapping[str, Any], target: str) -> None:
    """Write one JSON object to a path, or to stdout for ``-``."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    write_text("--json", target, text + "\n")


def write_csv(rows: Sequence[Row], target: str) -> None:
    """Write one line a row, without raw samples and parts, to a path, or to stdout for ``-``."""

    def write(file: TextIO) -> None:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            fields = asdict(row)
            writer.writerow({name: "" if fields[name] is None else fields[name] for name in CSV_COLUMNS})

    if target == "-":
        write(sys.stdout)
        return
    _open_and("--csv", target, write)


def write_junit(rows: Sequence[Row], target: str, seconds: float) -> None:
    """Write one test case a row: class = family.problem.device, name = variant, dtype and check."""
    counts = Counter(row.status for row in rows)
    suite = ElementTree.Element(
        "testsuite",
        name="eqconv verify",
        tests=str(len(rows)),
        failures=str(counts["fail"]),
        errors=str(counts["error"]),
        skipped=str(counts["skip"]),
        time=f"{seconds:.3f}",
    )
    tags = {"fail": "failure", "error": "error", "skip": "skipped"}
    for row in rows:
        name = f"{row.variant} {row.dtype} {row.check}"
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"{row.family}.{row.problem}.{row.device}", name=name
        )
        if row.status in tags:
            text = row.reason if row.repeat is None else f"{row.reason}\nrepeat: {row.repeat}"
            ElementTree.SubElement(case, tags[row.status], message=row.reason).text = text
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
    write_text("--junit", target, text + "\n")


def check_writable(option: str, target: str | None) -> None:
    """Refuse a target that cannot be written, before the work; raises UsageError."""
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{option} {target!r} is a folder: a file is needed")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {target!r}: the folder {str(path.parent)!r} is not there")


def write_text(option: str, target: str, text: str) -> None:
    """Write a text file; raises UsageError naming the option when that fails."""
    _open_and(option, target, lambda file: file.write(text))


def write_arrays(option: str, target: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as npz; raises UsageError naming the option when that fails."""
    import numpy as np  # 50 ms that the other reports do without

    try:
        with Path(target).open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UsageError(f"{option} {target!r} cannot be written: {error.strerror}") from error


def _open_and(option: str, target: str, write: Any) -> None:
    try:
        with Path(target).open("w", encoding="utf-8", newline="") as file:
            write(file)
    except OSError as error:
        raise UsageError(f"{option} {target!r} cannot be written: {error.strerror}") from error


def plain(value: Any) -> Any:
    """Plain JSON types: a number that is not finite becomes null, a path its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
