"""The errors eqconv raises on purpose, one class a remedy.

Errors of the operators are the built-in ``ValueError``, ``TypeError`` and ``IndexError``, as NumPy, PyTorch and
TensorFlow users expect. The classes here are for the tools around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

#: How many allowed names an error line lists.
_SHOWN_NAMES = 20


class EqconvError(Exception):
    """Base of every error that eqconv's tools raise on purpose."""


class UsageError(EqconvError):
    """The caller asked for something that cannot be meant: names the option, its value and what is allowed."""


class Unavailable(EqconvError):
    """Something asked for by name is not here; carries the reasons and the one command that mends it."""

    def __init__(self, what: str, reasons: Sequence[str], remedy: str = "") -> None:
        self.what, self.reasons, self.remedy = what, tuple(reasons), remedy
        text = f"{what}: {'; '.join(self.reasons)}"
        super().__init__(f"{text}. To mend it: {remedy}" if remedy else text)


def unknown(option: str, value: str, allowed: Sequence[str]) -> UsageError:
    """The error for a name that is not in a list, with the close matches first."""
    close = get_close_matches(value, allowed, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    shown = allowed if len(allowed) <= _SHOWN_NAMES else [*allowed[:_SHOWN_NAMES], f"... ({len(allowed)} in all)"]
    return UsageError(f"{option} {value!r} is unknown: {hint}allowed: {', '.join(shown)}")
