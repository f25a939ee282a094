"""A small tree of sources with one family, and programs that pretend to be compilers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from eqconv_cli.events import TargetFinished, TargetRow
from eqconv_cli.kernels import builder

CONTRACT = Path(__file__).parents[2] / "cuda" / "common" / "contract.h"

HEADER = """
#include "../common/contract.h"

typedef struct eqc_scale {
    int64_t size; /* of x and y */
    int32_t flags;
    double factor;
    const void* x;
    const int64_t* order; // NULL: as they are
    void* y;
} eqc_scale;

EQC_OPERATION(scale, eqc_scale)
"""

#: y = factor * x[order]; the workspace holds a copy of x, to show that it is there and aligned.
SOURCE = """
#include "scale.h"

namespace {

template <typename T>
int scale(const eqc_scale* arguments, void* workspace) {
    if (arguments->size < 0 || arguments->x == nullptr || arguments->y == nullptr) return EQC_BAD_ARGUMENT;
    if (reinterpret_cast<uintptr_t>(workspace) % 64 != 0) return EQC_BAD_ARGUMENT;
    if (arguments->flags == 2) return EQC_UNSUPPORTED;
    if (arguments->flags == 3) return EQC_EMULATION_FAULT;
    T* copy = static_cast<T*>(workspace);
    for (int64_t i = 0; i < arguments->size; ++i) copy[i] = static_cast<const T*>(arguments->x)[i];
    for (int64_t i = 0; i < arguments->size; ++i)
        static_cast<T*>(arguments->y)[i] = T(arguments->factor) * copy[arguments->order ? arguments->order[i] : i];
    return EQC_OK;
}

}  // namespace

size_t eqc_scale_f32_workspace(const eqc_scale* arguments) { return sizeof(float) * arguments->size; }
size_t eqc_scale_f64_workspace(const eqc_scale* arguments) { return sizeof(double) * arguments->size; }
int eqc_scale_f32(const eqc_scale* arguments, void* workspace, void*) { return scale<float>(arguments, workspace); }
int eqc_scale_f64(const eqc_scale* arguments, void* workspace, void*) { return scale<double>(arguments, workspace); }
EQC_API const char* eqc_emulation_report() { return "thread 7 reads unwritten memory"; }
"""


def make_tree(root: Path) -> Path:
    """A folder like ``cuda/``, whose one family builds for the targets cpu and emulated."""
    for folder in ("common", "scale", "emulation", "bindings"):
        (root / folder).mkdir(parents=True)
    shutil.copy(CONTRACT, root / "common" / "contract.h")
    (root / "scale" / "scale.h").write_text(HEADER)
    (root / "scale" / "scale.cu").write_text(SOURCE)
    # One of the objects for different instruction sets has the functions: the others would define them again.
    (root / "scale" / "scale.cpp").write_text(f"#ifdef EQC_ISA_PORTABLE\n{SOURCE}\n#endif\n")
    (root / "common" / "common.cpp").write_text("int eqc_common() { return 0; }\n")
    (root / "emulation" / "emulation.cpp").write_text('#include "runtime"\nint eqc_emulated() { return eqc_answer; }\n')
    (root / "emulation" / "runtime").write_text("static const int eqc_answer = 42;\n")
    return root


def rows(names: Sequence[str], **options: object) -> dict[str, TargetRow]:
    """Build and return the rows by target."""
    events = list(builder.build(names, **options))  # type: ignore[arg-type]
    return {event.row.target: event.row for event in events if isinstance(event, TargetFinished)}


def program(path: Path, script: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
