"""Problems for the compiled feature-steered operations, called through their contract, and the oracle's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from tests.feature_steered.support import TOLERANCE

RELU, FIRST, STABLE, DETERMINISTIC = 1, 2, 4, 8
#: Gradient of the contract -> input of the oracle.
GRADIENTS = {
    "dx": "data",
    "dcentre": "data_out",
    "dvalues": "values",
    "du": "var_u",
    "dv": "var_v",
    "dc": "var_c",
    "dw": "var_w",
    "db": "var_b",
}


@dataclass
class Problem:
    """One layer on one graph. ``given`` edges come in the caller's order; the pattern keeps those in ``kept``."""

    rows: int
    cols: int
    given: np.ndarray
    x: np.ndarray
    values: np.ndarray
    u: np.ndarray
    v: np.ndarray
    c: np.ndarray
    w: np.ndarray
    b: np.ndarray
    dy: np.ndarray
    centre: np.ndarray | None = None
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.x.dtype

    def pattern(self) -> dict[str, Any]:
        """Row order, column order, and the maps between them; ``edge_of_slot`` is left out when it is the identity."""
        row, col = self.given[self.kept].T
        order = np.argsort(row, kind="stable")
        row, col, edge = row[order], col[order], self.kept[order]
        by_column = np.argsort(col, kind="stable")
        found: dict[str, Any] = {
            "rowptr": np.searchsorted(row, np.arange(self.rows + 1)),
            "col": col.astype(np.int32),
            "colptr": np.searchsorted(col[by_column], np.arange(self.cols + 1)),
            "row_of_position": row[by_column].astype(np.int32),
            "slot_of_position": by_column.astype(np.int64),
        }
        if len(edge) != len(self.values) or (edge != np.arange(len(edge))).any():
            found["edge_of_slot"] = edge.astype(np.int64)
        return found

    def fields(self, flags: int) -> dict[str, Any]:
        C, M = self.u.shape
        fields = {
            "rows": self.rows,
            "cols": self.cols,
            "edges": len(self.kept),
            "given_edges": len(self.values),
            "channels": C,
            "outputs": len(self.b),
            "matrices": M,
            "flags": flags,
            "threads": 1,
            "x": self.x,
            "centre": self.x if self.centre is None else self.centre,
            **{name: getattr(self, name) for name in ("values", "u", "v", "c", "w", "b")},
            **self.pattern(),
        }
        return {
            name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
            for name, value in fields.items()
        }

    def oracle_inputs(self) -> dict[str, np.ndarray]:
        inputs = {
            "data": self.x,
            "indices": self.given[self.kept],
            "values": self.values[self.kept],
            "dense_shape": np.array([self.rows, self.cols]),
            "var_u": self.u,
            "var_v": self.v,
            "var_c": self.c,
            "var_w": self.w,
            "var_b": self.b,
        }
        return inputs if self.centre is None else {**inputs, "data_out": self.centre}

    def wanted(self, relu: bool = False) -> dict[str, np.ndarray]:
        """The oracle's y and gradients under the names of the contract."""
        inputs = self.oracle_inputs()
        y = reference(inputs)["output"]
        dy = np.where(y > 0, self.dy, 0) if relu else self.dy
        found = reference_gradients(inputs, {"output": dy})
        answers = {name: found[source] for name, source in GRADIENTS.items() if source in found}
        dvalues = np.zeros(len(self.values))
        dvalues[self.kept] = answers["dvalues"]
        return {**answers, "dvalues": dvalues, "y": np.maximum(y, 0) if relu else y}

    def run(self, flags: int = 0, only: set[str] | None = None) -> dict[str, np.ndarray]:
        """y and the gradients (those in ``only``) by the emulated kernels; unwritten results stay NaN."""
        core, fields = kernels.core("emulated"), self.fields(flags)
        y = np.full((self.rows, len(self.b)), np.nan, self.dtype)
        core.call("feature_steered_forward", self.dtype, {**fields, "y": y})
        shapes = {name: np.shape(getattr(self, name[1:])) for name in GRADIENTS if getattr(self, name[1:]) is not None}
        grads = {
            name: np.full(shape, np.nan, self.dtype) for name, shape in shapes.items() if only is None or name in only
        }
        core.call("feature_steered_backward", self.dtype, {**fields, "y": y, "dy": self.dy, **grads})
        return {"y": y, **grads}


def random_problem(
    seed: int = 0,
    rows: int = 9,
    cols: int | None = None,
    edges: int = 40,
    channels: int = 3,
    outputs: int = 4,
    matrices: int = 2,
    dtype: str = "float32",
    separate: bool = False,
    dropped: int = 0,
    shuffled: bool = True,
    offset: float = 0.0,
    steepness: float = 0.5,
    degrees: Mapping[int, int] | None = None,
) -> Problem:
    """Random edges, some of them twice, some rows without any; ``degrees`` adds edges to chosen rows."""
    rng = np.random.default_rng(seed)
    cols = rows if cols is None else cols
    given = np.stack([rng.integers(0, max(extent, 1), edges) for extent in (rows, cols)], axis=1)
    for row, degree in (degrees or {}).items():
        given = np.concatenate([given, np.stack([np.full(degree, row), rng.integers(0, cols, degree)], axis=1)])
    given = given[rng.permutation(len(given))] if shuffled else given[np.argsort(given[:, 0], kind="stable")]

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(dtype)

    return Problem(
        rows=rows,
        cols=cols,
        given=given,
        x=normal(cols, channels) + np.asarray(offset, dtype),
        values=normal(len(given)),
        u=normal(channels, matrices, scale=steepness),
        v=normal(channels, matrices, scale=steepness),
        c=normal(matrices),
        w=normal(matrices, channels, outputs, scale=channels**-0.5),
        b=normal(outputs),
        dy=normal(rows, outputs),
        centre=normal(rows, channels) + np.asarray(offset, dtype) if separate else None,
        kept=np.sort(rng.permutation(len(given))[dropped:]),
    )


def error(found: np.ndarray, wanted: np.ndarray, floor: float) -> float:
    """Largest difference relative to max(floor, largest reference); infinite when only one of the two is NaN."""
    if wanted.size == 0:
        return 0.0 if found.shape == wanted.shape else np.inf
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - wanted)
    if (np.isnan(found) != np.isnan(wanted)).any():
        return np.inf
    largest = np.nanmax(np.abs(wanted), initial=0.0)
    return float(np.nanmax(difference, initial=0.0) / max(floor, largest))


def assert_matches(problem: Problem, flags: int = 0, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Every result within the family's tolerance of the oracle."""
    found, wanted = problem.run(flags), problem.wanted(bool(flags & RELU))
    assert found.keys() == wanted.keys()
    errors = {name: error(found[name], wanted[name], 1.0 if name == "y" else 1e-3) for name in wanted}
    tolerance = factor * TOLERANCE[str(problem.dtype)]
    wrong = {name: f"{value:.1e}" for name, value in errors.items() if not value <= tolerance}
    assert not wrong, f"errors above {tolerance:.0e}: {wrong}"
    return found
