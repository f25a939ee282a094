"""What nvcc's assembler tells about each kernel (``-Xptxas -v``): registers, shared memory, stack and spills."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence

from eqconv_cli.events import KernelUse

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\w+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+(\d+))? bytes smem")


def parse(text: str) -> tuple[KernelUse, ...]:
    """The kernels in a compiler's output, by name and architecture."""
    found: list[KernelUse] = []
    entry: tuple[str, str] | None = None
    described = ""
    stack = (0, 0, 0)
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, stack = (match[1], match[2]), (0, 0, 0)
        elif match := _PROPERTIES.search(line):
            described = match[1]
        elif match := _STACK.search(line):
            # Functions that a kernel calls are described in the same way, each under its own name.
            if entry is not None and described == entry[0]:
                stack = (int(match[1]), int(match[2]), int(match[3]))
        elif entry is not None and (match := _USED.search(line)):
            shared = _SHARED.search(line)
            shared_bytes = sum(int(number) for number in shared.groups() if number) if shared else 0
            found.append(KernelUse(entry[0], entry[1], int(match[1]), shared_bytes, *stack))
            entry = None
    names = dict(zip((use.kernel for use in found), readable([use.kernel for use in found]), strict=True))
    uses = (KernelUse(names[use.kernel], *_without_name(use)) for use in found)
    return tuple(sorted(uses, key=lambda use: (use.kernel, _number(use.arch))))


def _without_name(use: KernelUse) -> tuple[str, int, int, int, int, int]:
    return use.arch, use.registers, use.shared_bytes, use.stack_bytes, use.spill_store_bytes, use.spill_load_bytes


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch) or 0)


def readable(symbols: Sequence[str]) -> list[str]:
    """C++ symbols as people read them: ``forward<float, 64>``, without namespaces, arguments and result."""
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return list(symbols)
    demangle.restype, demangle.argtypes = ctypes.c_void_p, [ctypes.c_char_p, *[ctypes.c_void_p] * 3]
    free.argtypes = [ctypes.c_void_p]
    names = []
    for symbol in symbols:
        status = ctypes.c_int()
        memory = demangle(symbol.encode(), None, None, ctypes.byref(status))
        name = ctypes.string_at(memory).decode(errors="replace") if memory and status.value == 0 else symbol
        if memory:
            free(memory)
        names.append(_short(name))
    return names


def _short(name: str) -> str:
    """The demangled name without what comes before the last ``::`` and after the template arguments."""
    plain = name.replace("(anonymous namespace)::", "")
    start = depth = 0
    for place, letter in enumerate(plain):
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth -= 1
        elif depth == 0 and letter == "(":
            return plain[start:place]
        elif depth == 0 and letter in " :":
            start = place + 1
    return plain[start:]
