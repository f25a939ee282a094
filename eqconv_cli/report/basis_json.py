"""The JSON report of ``eqconv basis`` (schema ``eqconv.report/1``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from eqconv_cli.events import SCHEMA
from eqconv_cli.report.files import plain
from eqconv_cli.studies import BasisStudy

#: Fields of a study that stand elsewhere in the report.
_ELSEWHERE = ("request", "filters", "elements", "forms", "seconds", "notes")


def basis_report(study: BasisStudy, version: str, machine: Mapping[str, Any], elements: bool) -> dict[str, Any]:
    """The study as plain JSON types; the kernels' attributes only where they are asked for, their values never."""
    content = asdict(study)
    made = {
        "schema": SCHEMA,
        "command": "basis",
        "version": version,
        "options": {name: value for name, value in content["request"].items() if value is not None},
        "machine": dict(machine),
        "basis": {name: value for name, value in content.items() if name not in _ELSEWHERE},
        "algorithms": [{**asdict(form), "bytes": form.bytes} for form in study.forms],
        **({"elements": content["elements"]} if elements else {}),
        "summary": {"passed": study.passed, "seconds": study.seconds, "notes": study.notes},
    }
    reported: dict[str, Any] = plain(made)
    return reported
