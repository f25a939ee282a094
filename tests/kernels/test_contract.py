from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eqconv_cli.errors import EqconvError
from eqconv_cli.kernels import contract, sources
from tests.kernels import support


def one(body: str, call: str = "EQC_OPERATION(scale, s)") -> list[contract.Operation]:
    return contract.parse(f"typedef struct s {{\n{body}\n}} s;\n{call}\n", "s.h")


def test_fields_are_those_of_the_header_in_order() -> None:
    (scale,) = contract.parse(support.HEADER, "scale.h")
    assert scale.name == "scale"
    assert list(scale.fields) == ["size", "flags", "factor", "x", "order", "y"]
    assert [name for name, field in scale.fields.items() if field.written] == ["y"]
    assert {name: field.element for name, field in scale.fields.items()} == {
        "size": None,
        "flags": None,
        "factor": None,
        "x": "",
        "order": "int64",
        "y": "",
    }
    assert ctypes.sizeof(scale.structure) == 48


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("  int64_t a, b;", "s.h:2: 'int64_t a, b;': expected one field a line"),
        ("  int64_t a;\n  int64_t a[3];", "s.h:3: 'int64_t a[3];': expected one field a line"),
        ("  int64_t a", "s.h:2: 'int64_t a': expected one field a line"),
        ("  long a;", "s.h:2: 'long a;': allowed types: int32_t, int64_t, double"),
        ("  const int64_t a;", "allowed types: int32_t, int64_t, double"),
        ("  const char* a;", "allowed types: void*, float*, double*"),
        ("  const void** a;", "expected one field a line"),
        ("  /* a\n  comment */\n\n  int32_t a;\n  int32_t a;", "s.h:6: struct s has two fields a"),
        ("", "struct s has no fields"),
    ],
)
def test_a_line_that_is_not_understood_is_an_error(body: str, message: str) -> None:
    with pytest.raises(EqconvError, match=re.escape(message)):
        one(body)


def test_operations_that_cannot_be_meant() -> None:
    with pytest.raises(EqconvError, match=r"s.h:4: struct t is not defined in this header: s"):
        one("  int32_t a;", "EQC_OPERATION(scale, t)")
    with pytest.raises(EqconvError, match=r"expected EQC_OPERATION\(operation, struct\)"):
        one("  int32_t a;", "EQC_OPERATION(scale)")
    with pytest.raises(EqconvError, match="struct s is also called t"):
        contract.parse("typedef struct s {\n int32_t a;\n} t;\nEQC_OPERATION(scale, s)\n", "s.h")


def test_headers_without_operations_may_hold_any_cpp() -> None:
    assert contract.parse("template <typename T>\nstruct s { T a[3]; };\n", "simd.h") == []
    assert contract.parse(support.CONTRACT.read_text(), "contract.h") == []


def test_an_operation_is_declared_once(tree: Path) -> None:
    assert list(contract.operations(tree)) == ["scale"]
    (tree / "other").mkdir()
    shutil.copy(tree / "scale" / "scale.h", tree / "other" / "other.h")
    with pytest.raises(EqconvError, match="the operation scale is declared in another header"):
        contract.operations(tree)


def test_every_struct_lies_in_memory_as_the_compiler_lays_it(tmp_path: Path) -> None:
    root = sources.root()
    structures = {operation.structure.__name__: operation.structure for operation in contract.operations(root).values()}
    assert structures
    headers = [path for path in sorted(root.glob("*/*.h")) if contract.parse(path.read_text(), str(path))]
    lines = [f'#include "{path}"' for path in headers]
    lines += ["#include <stdio.h>", "int main() {"]
    expected = []
    for name, structure in structures.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(ctypes.sizeof(structure))
        for field in structure._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field[0]}));')
            expected.append(getattr(structure, field[0]).offset)
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["g++", "-std=c++17", str(source), "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in printed.split()] == expected
