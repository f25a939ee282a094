"""The C contract of the families as Python sees it: structs and operations, read from the headers in ``cuda/``.

A header declares ``typedef struct name { ... } name;`` with one field a line, and ``EQC_OPERATION(operation, name)``
for each operation. Reading them keeps the fields in one place; a line that cannot be understood is an error.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eqconv_cli.errors import EqconvError

_SCALARS: Mapping[str, Any] = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "double": ctypes.c_double}
#: What a pointer can point to, as NumPy names it; "" is the operation's own type, float or double.
_POINTED = {
    "void": "",
    "float": "float32",
    "double": "float64",
    "uint8_t": "uint8",
    "int32_t": "int32",
    "int64_t": "int64",
}

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_STRUCT = re.compile(r"\btypedef\s+struct\s+(\w+)\s*\{(.*?)\}\s*(\w+)\s*;", re.DOTALL)
_OPERATION = re.compile(r"\bEQC_OPERATION\s*\(([^)]*)\)")
_FIELD = re.compile(r"(?P<const>const\s+)?(?P<type>\w+)\s*(?P<pointer>\*)?\s*(?P<name>\w+)\s*;")
_NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class Field:
    """A field of a struct."""

    name: str
    ctype: Any
    #: A pointer's element type as NumPy names it, "" for the operation's own; None: the field is a number.
    element: str | None
    #: The operation writes to what the pointer points to.
    written: bool = False

    @property
    def is_pointer(self) -> bool:
        """Whether it takes an array."""
        return self.element is not None


@dataclass(frozen=True)
class Operation:
    """An operation, and the struct it takes."""

    name: str
    structure: type[ctypes.Structure]
    fields: Mapping[str, Field]


def operations(root: Path) -> Mapping[str, Operation]:
    """Every operation that a header in ``<root>/<family>/`` declares, by name.

    Raises:
        EqconvError: a header has something in it that is not understood, or two declare the same operation.
    """
    states = tuple((path, path.stat().st_mtime_ns) for path in sorted(root.glob("*/*.h")))
    return _operations(states)


@cache
def _operations(headers: tuple[tuple[Path, int], ...]) -> Mapping[str, Operation]:
    found: dict[str, Operation] = {}
    for path, _ in headers:
        for operation in parse(path.read_text(encoding="utf-8"), str(path)):
            if operation.name in found:
                raise EqconvError(f"{path}: the operation {operation.name} is declared in another header, too")
            found[operation.name] = operation
    return found


def parse(text: str, path: str) -> list[Operation]:
    """The operations that a header declares; ``path`` is for error messages.

    Raises:
        EqconvError: names the file, the line and what is expected there.
    """

    # Blanks instead of what is cut keep the numbers of the lines.
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    code = _DIRECTIVE.sub(blank, _COMMENT.sub(blank, text))
    calls = list(_OPERATION.finditer(code))
    if not calls:
        return []  # a header without operations may hold any C++
    structs = {}
    for match in _STRUCT.finditer(code):
        name, body, alias = match.groups()
        line = code.count("\n", 0, match.start(2)) + 1
        if name != alias:
            raise EqconvError(f"{path}:{line}: struct {name} is also called {alias}: one name is expected")
        structs[name] = _structure(name, body, path, line)
    made = []
    for call in calls:
        line = code.count("\n", 0, call.start()) + 1
        words = [word.strip() for word in call[1].split(",")]
        if len(words) != 2 or not all(_NAME.fullmatch(word) for word in words):
            raise EqconvError(f"{path}:{line}: {call[0]!r}: expected EQC_OPERATION(operation, struct)")
        if words[1] not in structs:
            allowed = ", ".join(structs) or "none is defined"
            raise EqconvError(f"{path}:{line}: struct {words[1]} is not defined in this header: {allowed}")
        made.append(Operation(words[0], *structs[words[1]]))
    return made


def _structure(name: str, body: str, path: str, line: int) -> tuple[type[ctypes.Structure], dict[str, Field]]:
    fields: dict[str, Field] = {}
    for number, text in enumerate(body.splitlines(), line):
        stripped = text.strip()
        if stripped:
            field = _field(stripped, f"{path}:{number}")
            if field.name in fields:
                raise EqconvError(f"{path}:{number}: struct {name} has two fields {field.name}")
            fields[field.name] = field
    if not fields:
        raise EqconvError(f"{path}:{line}: struct {name} has no fields")
    members = [(field.name, field.ctype) for field in fields.values()]
    return type(name, (ctypes.Structure,), {"_fields_": members}), fields


def _field(text: str, where: str) -> Field:
    match = _FIELD.fullmatch(text)
    if match is None:
        raise EqconvError(f"{where}: {text!r}: expected one field a line: a type, a name and a semicolon")
    kind, name = match["type"], match["name"]
    allowed = _POINTED if match["pointer"] else _SCALARS
    if kind not in allowed or (match["const"] and not match["pointer"]):
        after = "*" if match["pointer"] else ""
        raise EqconvError(f"{where}: {text!r}: allowed types: {', '.join(f'{known}{after}' for known in allowed)}")
    if match["pointer"]:
        return Field(name, ctypes.c_void_p, _POINTED[kind], written=not match["const"])
    return Field(name, _SCALARS[kind], None)
