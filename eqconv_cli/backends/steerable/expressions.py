"""The text that names a type of fields, for configurations; the inverse of ``Space.fields``."""

from __future__ import annotations

import re

from eqconv_cli.backends.steerable.fields import FieldType

_TERMS = (
    (re.compile(r"regular"), "regular"),
    (re.compile(r"irrep_(-?\d+(?:,-?\d+)?)"), r"irrep:\1"),
    (re.compile(r"quotient\[(\d+)\]"), r"quotient:\1"),
    (re.compile(r"quotient\[\((None|\d+), (\d+)\)\]"), r"quotient:\1,\2"),
)


def expression_of(fields: FieldType) -> str:
    """An expression such as ``2*regular+irrep:1`` that ``fields.space.fields`` reads as these fields.

    Raises:
        ValueError: a field is neither regular, nor an irrep, nor a quotient; it is named.
    """
    counts: list[tuple[str, int]] = []
    terms = {name: _term(name) for name in fields.by_name}
    for field in fields.representations:
        term = terms[field.name]
        if counts and counts[-1][0] == term:
            counts[-1] = (term, counts[-1][1] + 1)
        else:
            counts.append((term, 1))
    made = "+".join(term if count == 1 else f"{count}*{term}" for term, count in counts)
    for given, again in zip(fields.representations, fields.space.fields(made).representations, strict=True):
        if given.name != again.name or not given.same_as(again):
            raise ValueError(_custom(given.name))
    return made


def _term(name: str) -> str:
    for pattern, replacement in _TERMS:
        match = pattern.fullmatch(name)
        if match is not None:
            return match.expand(replacement).lower()
    raise ValueError(_custom(name))


def _custom(name: str) -> str:
    return (
        f"the representation {name!r} has no expression: only regular, irrep and quotient fields can be written to a "
        "configuration; make the layer in code and load its weights"
    )
