"""Comparison with a saved run: the same rows then and now, by their raw samples."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqconv_cli.engine import statistics
from eqconv_cli.engine.machine import identity
from eqconv_cli.errors import UsageError
from eqconv_cli.events import SCHEMA, Row


@dataclass(frozen=True)
class Comparison:
    """One row now against the same row then; ``ratio`` is time now / time then."""

    label: str
    then_s: float
    now_s: float
    ratio: statistics.Ratio
    verdict: statistics.Verdict


def saved_path(name: str) -> Path:
    """Where a saved run lies: a path for a name that looks like one, else a file in the user's data folder."""
    if name.endswith(".json") or os.sep in name:
        return Path(name)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "eqconv" / "runs" / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """A saved report.

    Raises:
        UsageError: it is not there, or is not a report of this schema with timings.
    """
    path = saved_path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise UsageError(f"--compare {name!r}: {path} is not there; saved runs: {', '.join(known) or 'none'}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--compare {name!r}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or content.get("command") != "bench":
        raise UsageError(f"--compare {name!r}: {path} is not a bench report of the schema {SCHEMA}")
    return content


def compare(rows: Sequence[Row], then: Mapping[str, Any], threshold: float) -> list[Comparison]:
    """Every row with samples in both runs; they saw different moments, so the intervals are of unpaired medians."""
    before = {_key(row): row for row in then["rows"] if row.get("samples_s")}
    compared = []
    for row in rows:
        old = before.get(_key(vars(row)))
        if old is None or not row.samples_s:
            continue
        ratio = statistics.unpaired_ratio(row.samples_s, old["samples_s"])
        compared.append(
            Comparison(
                label=f"{row.variant} · {row.problem} · {row.check}",
                then_s=statistics.median(old["samples_s"]),
                now_s=statistics.median(row.samples_s),
                ratio=ratio,
                verdict=statistics.verdict(ratio, threshold),
            )
        )
    return compared


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """What makes two machines, or their software, incomparable; empty when they are alike."""
    mine, theirs = identity(dict(now)), identity(dict(then))
    return [f"{name}: {theirs[name]} then, {mine[name]} now" for name in mine if mine[name] != theirs[name]]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("family", "problem", "variant", "device", "dtype", "check"))
