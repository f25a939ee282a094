"""A compiled core, loaded: its operations called with NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError, Unavailable, unknown
from eqconv_cli.kernels import contract, sources
from eqconv_cli.kernels.contract import Field, Operation

DEVICES = ("cpu", "emulated", "cuda")

_SUFFIXES = {"float32": "f32", "float64": "f64"}
_WORKSPACE_ALIGNMENT = 64
_EMULATION_FAULT, _CUDA_ERROR = 3, 1000
_STATUSES = {
    1: "a needed array is missing or a size is impossible",
    2: "this build of the core does not compute this",
    _EMULATION_FAULT: "the emulated device found a fault",
}


@cache
def load(device: str) -> Core:
    """The core of a device, see :func:`eqconv_cli.kernels.core`."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    path = kernels.built(device)
    if path is None:
        raise Unavailable(f"the compiled core for {device}", kernels.missing(device))
    return Core(device, path, contract.operations(sources.root()))


class PreparedCall:
    """An operation with its arguments as the core takes them: calling it converts and allocates nothing."""

    def __init__(self, run: Any, arguments: ctypes.Structure, workspace_bytes: int, stream: int, kept: object) -> None:
        self._run, self._kept = run, (arguments, kept)
        self._memory = np.empty(workspace_bytes + _WORKSPACE_ALIGNMENT, np.uint8)
        self._arguments = ctypes.addressof(arguments)
        #: Address and bytes of the workspace.
        self.workspace = self._memory.ctypes.data + -self._memory.ctypes.data % _WORKSPACE_ALIGNMENT
        self.workspace_bytes = workspace_bytes
        self._stream = stream or None

    def __call__(self) -> int:
        """Run it on the arrays that it was prepared with; returns the status, 0 for success."""
        status: int = self._run(self._arguments, self.workspace, self._stream)
        return status


class Core:
    """One compiled core. Calls from several threads do not meet."""

    def __init__(self, device: str, path: Path, operations: Mapping[str, Operation]) -> None:
        """Load the library.

        Raises:
            Unavailable: the system cannot load it; says why.
        """
        self.device, self.path = device, path
        self._operations = operations
        self._found: dict[str, tuple[Any, Any]] = {}
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            remedy = f"eqconv build-kernels --target {device} --force"
            raise Unavailable(f"the compiled core for {device}", [f"it does not load: {error}"], remedy) from error

    def call(
        self,
        operation: str,
        dtype: Any,
        fields: Mapping[str, int | float | np.ndarray | None],
        stream: int = 0,
    ) -> None:
        """Run one operation on NumPy arrays.

        A field that is not given is 0 or NULL; which ones an operation needs, its header says. The core trusts the
        sizes among the fields: that the arrays are as long as they say is up to the caller.

        Args:
            operation: the name in the header, e.g. ``"feature_steered_forward"``.
            dtype: float32 or float64, the type of the real arrays.
            fields: numbers and C-contiguous arrays of the types that the header gives, by name.
            stream: for the core's ``stream`` argument.

        Raises:
            ValueError, TypeError: a field is unknown, or not what the header says.
            EqconvError: the core reports that it could not compute this; says why.
        """
        prepared = self.prepare(operation, dtype, fields, stream)
        with self._unwritten(prepared.workspace, prepared.workspace_bytes):
            status = prepared()
        if status != 0:
            raise EqconvError(f"{operation} on {self.device}: {self.status_text(status)}")

    def prepare(
        self,
        operation: str,
        dtype: Any,
        fields: Mapping[str, int | float | np.ndarray | None],
        stream: int = 0,
    ) -> PreparedCall:
        """An operation on NumPy arrays that can be run many times, with a workspace of its own.

        Args, Raises: as for :meth:`call`, which runs it once and raises for a status other than 0.
        """
        if self.device == "cuda":
            raise EqconvError("the core for cuda takes memory of the GPU: call it through PyTorch or TensorFlow")
        known = self._operation(operation)
        real = np.dtype(dtype)
        if real.name not in _SUFFIXES:
            raise TypeError(f"dtype {real.name} is unknown: allowed: {', '.join(_SUFFIXES)}")
        arguments = known.structure()
        for name, value in fields.items():
            field = known.fields.get(name)
            if field is None:
                raise ValueError(f"{operation} has no field {name!r}: allowed: {', '.join(known.fields)}")
            if value is not None:
                setattr(arguments, name, _pointer(field, value, real) if field.is_pointer else _number(field, value))
        symbol = f"eqc_{operation}_{_SUFFIXES[real.name]}"
        workspace_bytes, run = self._functions(symbol)
        return PreparedCall(run, arguments, workspace_bytes(ctypes.byref(arguments)), stream, tuple(fields.values()))

    def function(self, symbol: str) -> Any:
        """The exported C function of this name, for bare calls; the caller sets ``argtypes`` and ``restype``.

        Raises:
            EqconvError: the library has no such function.
        """
        try:
            return self._library[symbol]
        except AttributeError:
            raise EqconvError(f"{self.path} has no function {symbol}") from None

    def status_text(self, status: int) -> str:
        """What a status other than 0 means, with the report of the emulated device where it has one."""
        if status >= _CUDA_ERROR:
            return f"CUDA error {status - _CUDA_ERROR}"
        text = _STATUSES.get(status, f"status {status}")
        if status == _EMULATION_FAULT:
            report = self.function("eqc_emulation_report")
            report.restype = ctypes.c_char_p
            text += f": {(report() or b'').decode(errors='replace')}"
        return text

    def _operation(self, name: str) -> Operation:
        if name not in self._operations:
            raise ValueError(f"operation {name!r} is unknown: allowed: {', '.join(self._operations)}")
        return self._operations[name]

    @contextmanager
    def _unwritten(self, memory: int, size: int) -> Iterator[None]:
        """On the emulated device a read of this memory is a fault until a kernel has written there."""
        if self.device != "emulated":
            yield
            return
        place = ctypes.c_void_p(memory), ctypes.c_size_t(size)
        self.function("eqc_mark_unwritten")(*place)
        try:
            yield
        finally:
            self.function("eqc_mark_written")(*place)

    def _functions(self, symbol: str) -> tuple[Any, Any]:
        if symbol not in self._found:
            workspace, run = self.function(f"{symbol}_workspace"), self.function(symbol)
            workspace.argtypes, workspace.restype = [ctypes.c_void_p], ctypes.c_size_t
            run.argtypes, run.restype = [ctypes.c_void_p] * 3, ctypes.c_int
            self._found[symbol] = workspace, run
        return self._found[symbol]


def _number(field: Field, value: object) -> int | float:
    whole = field.ctype is not ctypes.c_double
    allowed = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise TypeError(f"{field.name} is {value!r}: allowed: {'a whole number' if whole else 'a number'}")
    if not whole:
        return float(value)
    number = int(value)
    if field.ctype(number).value != number:
        raise ValueError(f"{field.name} is {number}: it must fit into {8 * ctypes.sizeof(field.ctype)} bits")
    return number


def _pointer(field: Field, value: object, real: np.dtype[Any]) -> int:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{field.name} is a {type(value).__name__}: allowed: a NumPy array or None")
    expected = np.dtype(field.element) if field.element else real
    if value.dtype != expected:
        raise TypeError(f"{field.name} has dtype {value.dtype}: allowed: {expected}")
    if not value.flags.c_contiguous or not value.flags.aligned:
        raise ValueError(f"{field.name} has strides {value.strides}: it must be C-contiguous and aligned")
    if field.written and not value.flags.writeable:
        raise ValueError(f"{field.name} is read-only: the operation writes to it")
    return value.ctypes.data
