"""The CUDA kernels of the feature-steered family, run by the emulated device, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli import errors, kernels
from tests.feature_steered.support import TOLERANCE
from tests.kernels_cuda.support import (
    DETERMINISTIC,
    FIRST,
    RELU,
    STABLE,
    Problem,
    assert_matches,
    error,
    random_problem,
)

pytestmark = pytest.mark.skipif(bool(kernels.missing("emulated")), reason="; ".join(kernels.missing("emulated")))

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
both_sums = pytest.mark.parametrize("flags", [0, DETERMINISTIC], ids=["atomic", "deterministic"])
#: Every way through the kernels that a flag chooses.
every_way = pytest.mark.parametrize(
    "flags",
    [0, DETERMINISTIC, FIRST, STABLE, STABLE | FIRST | DETERMINISTIC],
    ids=["atomic", "deterministic", "first", "stable", "stable-first-deterministic"],
)

#: (C, D, M): one chunk and several, whole and ragged, dense and padded; 16-byte rows and not; one panel and several.
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (3, 16, 8),
    (5, 2, 3),
    (8, 8, 4),
    (16, 32, 8),
    (17, 33, 16),
    (32, 32, 8),
    (33, 17, 9),
    (64, 64, 2),
    (64, 5, 17),
    (16, 130, 1),
    (3, 257, 2),
    (8, 4, 33),
    (2, 64, 64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_dtypes
@both_sums
def test_shapes(shape: tuple[int, int, int], dtype: str, flags: int) -> None:
    channels, outputs, matrices = shape
    assert_matches(
        random_problem(rows=14, edges=70, channels=channels, outputs=outputs, matrices=matrices, dtype=dtype), flags
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_dtypes
def test_order_first(shape: tuple[int, int, int], dtype: str) -> None:
    channels, outputs, matrices = shape
    problem = random_problem(rows=14, edges=70, channels=channels, outputs=outputs, matrices=matrices, dtype=dtype)
    found = problem.run(FIRST, only={"db"})
    assert error(found["y"], problem.wanted()["y"], 1.0) <= TOLERANCE[dtype]


def test_order_first_with_more_channels_than_a_tile_holds() -> None:
    problem = random_problem(rows=5, edges=20, channels=270, outputs=3, matrices=2)
    assert error(problem.run(FIRST, only={"db"})["y"], problem.wanted()["y"], 1.0) <= TOLERANCE["float32"]


@both_dtypes
@every_way
def test_many_tiles(dtype: str, flags: int) -> None:
    assert_matches(random_problem(rows=150, edges=900, channels=6, outputs=5, matrices=3, dtype=dtype), flags)


@pytest.mark.parametrize(("dtype", "matrices"), [("float32", 216), ("float64", 56)])
def test_a_block_with_a_second_tile(dtype: str, matrices: int) -> None:
    """Where chunks and panels nearly fill the device, a block of the gradient of W takes several tiles of rows."""
    problem = random_problem(rows=130, edges=300, channels=1, outputs=300, matrices=matrices, dtype=dtype)
    found = problem.run(only={"dw"})
    assert error(found["dw"], problem.wanted()["dw"], 1e-3) <= TOLERANCE[dtype]


@both_dtypes
@every_way
def test_many_channels(dtype: str, flags: int) -> None:
    """So many that a second tile of x overwrites all columns of the first in the product of the order first."""
    assert_matches(random_problem(rows=70, edges=200, channels=500, outputs=3, matrices=3, dtype=dtype), flags)


@both_dtypes
@every_way
def test_separate_centres(dtype: str, flags: int) -> None:
    assert_matches(random_problem(rows=11, cols=23, channels=5, matrices=9, separate=True, dtype=dtype), flags)


@both_sums
def test_fewer_rows_than_columns(flags: int) -> None:
    assert_matches(random_problem(rows=70, cols=150, edges=400), flags)


@both_dtypes
@every_way
@pytest.mark.parametrize("matrices", [3, 20], ids=["one chunk", "many chunks"])
def test_long_rows(dtype: str, flags: int, matrices: int) -> None:
    """Rows around the limit, and one long enough that the tile's denominators no longer fit their cache."""
    degrees = {1: 255, 2: 300, 5: 1200, 6: 256, 7: 257}
    problem = random_problem(rows=9, edges=20, channels=4, matrices=matrices, degrees=degrees, dtype=dtype)
    assert_matches(problem, flags)


@both_sums
def test_long_columns(flags: int) -> None:
    problem = random_problem(rows=700, cols=2, edges=900, separate=True, matrices=3)
    assert_matches(problem, flags)


@every_way
@pytest.mark.parametrize("order", ["shuffled", "sorted", "dropped", "all dropped"])
def test_edge_orders(flags: int, order: str) -> None:
    dropped = {"dropped": 13, "all dropped": 40}.get(order, 0)
    problem = random_problem(shuffled=order != "sorted", dropped=dropped)
    assert ("edge_of_slot" in problem.fields(0)) == (order != "sorted")
    found = assert_matches(problem, flags)
    outside = np.setdiff1d(np.arange(len(problem.values)), problem.kept)
    assert len(outside) == dropped
    assert (found["dvalues"][outside] == 0).all()


@every_way
@pytest.mark.parametrize("sizes", [(0, 5, 0), (5, 0, 0), (0, 0, 0), (5, 5, 0), (1, 1, 1)], ids=str)
def test_empty(flags: int, sizes: tuple[int, int, int]) -> None:
    rows, cols, edges = sizes
    found = assert_matches(random_problem(rows=rows, cols=cols, edges=edges, separate=rows != cols), flags)
    if edges == 0:
        assert (found["dx"] == 0).all()
        assert (found["dw"] == 0).all()


@every_way
def test_rows_without_edges_are_the_bias(flags: int) -> None:
    problem = random_problem(rows=30, edges=12)
    lonely = np.setdiff1d(np.arange(30), problem.given[:, 0])
    found = assert_matches(problem, flags)
    assert len(lonely) > 0
    np.testing.assert_array_equal(found["y"][lonely], np.broadcast_to(problem.b, (len(lonely), 4)))


@both_dtypes
@both_sums
@pytest.mark.parametrize("first", [0, FIRST], ids=["last", "first"])
def test_relu(dtype: str, flags: int, first: int) -> None:
    problem = random_problem(rows=40, edges=200, outputs=6, dtype=dtype)
    found = assert_matches(problem, flags | first | RELU)
    assert (found["y"] == 0).any()
    assert (found["y"] > 0).any()


@every_way
@pytest.mark.parametrize("matrices", [6, 12], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "free"])
def test_features_far_from_zero(flags: int, matrices: int, tied: bool) -> None:
    """Centring keeps the digits of the logits when all features share an offset."""
    steepness = 0.5 if tied else 0.003
    problem = random_problem(rows=50, edges=200, channels=8, matrices=matrices, offset=300.0, steepness=steepness)
    if tied:
        problem.v = -problem.u
    assert_matches(problem, flags)


@every_way
def test_a_saturated_softmax_has_no_gradient(flags: int) -> None:
    """A q of exactly 1: what is left of the gradient of the logits must not be rounding."""
    problem = random_problem(rows=50, edges=200, channels=8, matrices=6, offset=300.0)
    found = assert_matches(problem, flags)
    assert np.abs(found["du"]).max() < 1e-6


@both_dtypes
@every_way
@pytest.mark.parametrize("matrices", [2, 8, 12, 33])
def test_an_almost_saturated_softmax(dtype: str, flags: int, matrices: int) -> None:
    """Large features under a q of almost 1: the gradients of the logits are small differences of large numbers."""
    problem = random_problem(
        rows=40, edges=200, channels=6, matrices=matrices, offset=300.0, steepness=0.3, dtype=dtype
    )
    problem.v = -problem.u
    # In float64 the oracle loses the same digits, since it takes the difference as the formula has it.
    problem.c[matrices // 2] += 12 if dtype == "float32" else 4
    assert_matches(problem, flags)


@both_dtypes
@both_sums
@pytest.mark.parametrize("matrices", [4, 20], ids=["one chunk", "many chunks"])
def test_hard_logits(dtype: str, flags: int, matrices: int) -> None:
    """Two distant clusters: within one, logits of order one, but products of factors among the denormal numbers."""
    problem = random_problem(rows=40, edges=300, matrices=matrices, channels=1, dtype=dtype)
    side = np.where(np.arange(40) % 2, 1.0, -1.0)
    problem.x = (problem.x * 0.3 + (95.0 if dtype == "float32" else 728.0) * side[:, None]).astype(dtype)
    problem.u = np.array([[(1.0, 0.0)[m % 2] for m in range(matrices)]], dtype)
    problem.v = -problem.u
    problem.kept = np.flatnonzero(side[problem.given[:, 0]] == side[problem.given[:, 1]])
    assert_matches(problem, flags)


@both_dtypes
@both_sums
@pytest.mark.parametrize("matrices", [4, 20], ids=["one chunk", "many chunks"])
def test_steep_logits(dtype: str, flags: int, matrices: int) -> None:
    """Logits so far apart that factors underflow to 0."""
    problem = random_problem(rows=40, edges=150, matrices=matrices, channels=2, dtype=dtype, steepness=20.0)
    problem.v = -problem.u
    assert_matches(problem, flags)


@every_way
@pytest.mark.parametrize("matrices", [3, 20], ids=["one chunk", "many chunks"])
def test_nan_stays_in_the_rows_that_use_it(flags: int, matrices: int) -> None:
    problem = random_problem(rows=80, edges=160, channels=5, matrices=matrices)
    clean = problem.run(flags)
    bad = 7
    problem.x[bad, 2] = np.nan
    found = problem.run(flags)
    users = np.unique(np.append(problem.given[problem.given[:, 1] == bad, 0], bad))
    used = np.isin(np.arange(80), users) & np.isin(np.arange(80), problem.given[:, 0])
    assert 1 < used.sum() < 80
    assert np.isnan(found["y"][used]).all()
    np.testing.assert_allclose(found["y"][~used], clean["y"][~used], rtol=0, atol=1e-5)
    assert np.isfinite(found["dvalues"][~used[problem.given[:, 0]]]).all()
    assert np.isfinite(found["db"]).all()


def test_infinite_features_do_not_spoil_the_centring() -> None:
    problem = random_problem(rows=60, edges=40, channels=8, offset=5000.0)
    problem.v = -problem.u
    problem.x[3, 1] = np.inf
    touched = np.unique(np.append(problem.given[problem.given[:, 1] == 3, 0], 3))
    rest = np.setdiff1d(np.arange(60), touched)
    with np.errstate(invalid="ignore"):
        wanted = problem.wanted()["y"][rest]
    assert error(problem.run(only={"db"})["y"][rest], wanted, 1.0) <= 1e-5


GRADIENTS = ["dx", "dcentre", "dvalues", "du", "dv", "dc", "dw", "db"]


@both_sums
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("matrices", [2, 9], ids=["one chunk", "many chunks"])
def test_each_gradient_alone(name: str, flags: int, matrices: int) -> None:
    problem = random_problem(separate=True, matrices=matrices)
    found = problem.run(flags, only={name})
    assert found.keys() == {"y", name}
    assert error(found[name], problem.wanted()[name], 1e-3) <= TOLERANCE["float32"]


@pytest.mark.parametrize("matrices", [3, 20], ids=["one chunk", "many chunks"])
def test_deterministic_twice_is_the_same(matrices: int) -> None:
    problem = random_problem(rows=90, edges=400, matrices=matrices)
    first, second = problem.run(DETERMINISTIC), problem.run(DETERMINISTIC)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_unaligned_arrays() -> None:
    """Rows of 16 bytes that do not start at a multiple of 16 must not be read as vectors."""
    problem = random_problem(channels=4, outputs=8, matrices=4)
    for name in ("x", "w", "u", "v", "dy"):
        array = getattr(problem, name)
        shifted = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
        shifted[:] = array
        setattr(problem, name, shifted)
    assert_matches(problem)


def call(problem: Problem, **changes: object) -> None:
    y = np.zeros((problem.rows, len(problem.b)), problem.dtype)
    kernels.core("emulated").call(
        "feature_steered_backward",
        problem.dtype,
        {**problem.fields(0), "y": y, "dy": problem.dy, "dx": np.zeros_like(problem.x), **changes},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 0},
        {"matrices": -1},
        {"given_edges": 1},
        {"x": None},
        {"dy": None},
        {"flags": DETERMINISTIC, "colptr": None},
        {"flags": RELU, "y": None},
        {"dcentre": np.zeros((9, 3), np.float32)},
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, object]) -> None:
    problem = random_problem()
    call(problem)
    with pytest.raises(errors.EqconvError):
        call(problem, **changes)
