"""The compiled expansion of steerable kernels, called bare, against plain sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError
from tests.steerable import support_core as core
from tests.steerable.support_core import DIRECT, INSTRUCTIONS, Arrays, backward, forward

pytestmark = pytest.mark.skipif(bool(kernels.missing("cpu")), reason="; ".join(kernels.missing("cpu")))

TOLERANCE = {"float32": 2e-6, "float64": 4e-15}
#: Sums have as many terms at most, of about 1.
LAYERS: dict[str, dict[str, Any]] = {
    "ragged": {},
    "no type": {"without": 1.0},
    "all typed": {"without": 0.0, "out_fields": 3, "in_fields": 40},
    "one pair": {"out_fields": 1, "in_fields": 1, "without": 0.0},
    "empty fields": {"sizes": (0, 3, 1)},
    "large blocks": {"out_fields": 2, "in_fields": 3, "sizes": (8, 17), "without": 0.0},
    "one pixel": {"pixels": 1, "permutations": 1},
    "nine pixels": {"pixels": 9, "harmonics": 6},
    "sixteen pixels": {"pixels": 16, "harmonics": 5, "permutations": 8},
    "thirty-two pixels": {"pixels": 32, "harmonics": 16},
    "many pixels": {"pixels": 81, "harmonics": 31, "permutations": 8},
    "more pixels": {"pixels": 121, "harmonics": 46},
    "three harmonics": {"harmonics": 3, "pixels": 49},
}
CASES = [
    pytest.param(name, direct, dtype, id=f"{name}-{'direct' if direct else 'harmonics'}-{dtype}")
    for name in LAYERS
    for direct in (False, True)
    for dtype in TOLERANCE
]


def made(name: str, direct: bool, dtype: str) -> Arrays:
    return core.layer(sum(map(ord, name)), direct=direct, dtype=dtype, **LAYERS[name])


def assert_near(actual: np.ndarray, expected: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype.name] * scale)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "direct", "dtype"), CASES)
def test_filter(name: str, direct: bool, dtype: str, instructions: str) -> None:
    f = made(name, direct, dtype)
    assert_near(forward("cpu", f, flags=f["flags"] | INSTRUCTIONS[instructions]), core.expected_filter(f))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "direct", "dtype"), CASES)
def test_weights(name: str, direct: bool, dtype: str, instructions: str) -> None:
    f = made(name, direct, dtype)
    assert_near(backward("cpu", f, flags=f["flags"] | INSTRUCTIONS[instructions]), core.expected_weights(f))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "direct", "dtype"), CASES)
def test_threads_do_not_change_a_bit(name: str, direct: bool, dtype: str, instructions: str) -> None:
    f = made(name, direct, dtype)
    for run in (forward, backward):
        one = run("cpu", f, flags=f["flags"] | INSTRUCTIONS[instructions])
        for threads in (2, 3, 4, 0):
            again = run("cpu", f, flags=f["flags"] | INSTRUCTIONS[instructions], threads=threads)
            np.testing.assert_array_equal(again.view(np.uint8), one.view(np.uint8))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("direct", [False, True])
def test_one_map_is_the_transpose_of_the_other(direct: bool, instructions: str) -> None:
    f = core.layer(5, direct=direct, dtype="float64")
    flags = f["flags"] | INSTRUCTIONS[instructions]
    there = float(np.vdot(forward("cpu", f, flags=flags), f["filter"]))
    back = float(np.vdot(f["weights"], backward("cpu", f, flags=flags)))
    assert there == pytest.approx(back, rel=1e-12)


@pytest.mark.parametrize(
    "sizes",
    [
        {"out_fields": 0},
        {"in_fields": 0},
        {"out_fields": 0, "in_fields": 0},
        {"pixels": 0},
        {"sizes": (0,)},
        {"without": 1.0},
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_nothing_to_do(sizes: dict[str, Any], direct: bool) -> None:
    f = core.layer(3, direct=direct, **sizes)
    np.testing.assert_array_equal(forward("cpu", f), core.expected_filter(f))
    np.testing.assert_array_equal(backward("cpu", f), core.expected_weights(f))


def typed_pair(f: Arrays) -> tuple[int, int]:
    found = np.argwhere(f["pairs"][..., 0] >= 0)
    return int(found[0, 0]), int(found[0, 1])


def set_pair(entry: int, value: int) -> Callable[[Arrays], None]:
    def change(f: Arrays) -> None:
        f["pairs"][(*typed_pair(f), entry)] = value

    return change


def set_record(entry: int, value: int) -> Callable[[Arrays], None]:
    def change(f: Arrays) -> None:
        f["table"][entry] = value

    return change


def set_number(name: str, value: int) -> Callable[[Arrays], None]:
    def change(f: Arrays) -> None:
        f[name] = value

    return change


def set_entry(name: str, at: int, value: int) -> Callable[[Arrays], None]:
    def change(f: Arrays) -> None:
        f[name].reshape(-1)[at] = value

    return change


def lose(name: str) -> Callable[[Arrays], None]:
    def change(f: Arrays) -> None:
        f[name] = None

    return change


def set_list(place: str, value: int) -> Callable[[Arrays], None]:
    """Another number at the start of a list of the first type that is by harmonics."""

    def change(f: Arrays) -> None:
        _, _, _, rows, used, slots, at, _ = f["table"][: core.RECORD]
        element = at + 3 * used
        first = element + slots
        images = first + rows + 1
        places = {
            "index": at,
            "slots": at + 1,
            "first slot": at + 2,
            "element": element,
            "first image": first,
            "next image": first + 1,
            "last image": first + rows,
            "o": images,
            "i": images + 1,
            "sign": images + 2,
            "permutation": images + 3,
        }
        f["table"][places[place]] = value

    return change


def repeat_image(f: Arrays) -> None:
    _, _, _, rows, used, slots, at, _ = f["table"][: core.RECORD]
    first = at + 3 * used + slots + rows + 1
    f["table"][first : first + 2] = f["table"][first + 4 : first + 6]


def swap_identity(f: Arrays) -> None:
    f["permutation"] = np.ascontiguousarray(f["permutation"][::-1])


BAD_ANYWHERE = {
    "out fields": set_number("out_fields", -1),
    "huge fields": set_number("in_fields", 2**40),
    "pixels": set_number("pixels", -1),
    "huge pixels": set_number("pixels", 2**60),
    "channels": set_number("out_channels", 3),
    "types": set_number("types", 10**6),
    "weights": set_number("weights_size", 1),
    "values": set_number("values_size", 1),
    "threads": set_number("threads", -1),
    "no pairs": lose("pairs"),
    "no out starts": lose("out_starts"),
    "no in starts": lose("in_starts"),
    "no table": lose("table"),
    "no values": lose("values"),
    "starts": set_entry("out_starts", 0, 1),
    "descending starts": set_entry("in_starts", 2, -1),
    "last start": set_entry("in_starts", -1, 1000),
    "type": set_pair(0, 9),
    "negative type": set_pair(0, -2),
    "first weight": set_pair(1, 10**6),
    "negative weight": set_pair(1, -1),
    "type without its weights": set_pair(0, -1),
    "out size": set_record(0, 0),
    "other out size": set_record(0, 3),
    "in size": set_record(1, 2**30),
    "elements": set_record(2, -1),
    "more elements": set_record(2, 2**31 - 1),
    "first value": set_record(7, 10**8),
    "negative value": set_record(7, -1),
}
BAD_BY_HARMONICS = {
    "table": set_number("table_size", 80),
    "harmonics": set_number("harmonics", 1),
    "no permutations": set_number("permutations", 0),
    "few permutations": set_number("permutations", 1),
    "no permutation": lose("permutation"),
    "no harmonic": lose("harmonic"),
    "rows": set_record(3, 2**31 - 1),
    "used": set_record(4, 2**31 - 1),
    "slot count": set_record(5, 2**31 - 1),
    "negative lists": set_record(6, -8),
    "lists": set_record(6, 2**31 - 1),
    "index": set_list("index", 11),
    "negative index": set_list("index", -1),
    "slots": set_list("slots", 10**6),
    "first slot": set_list("first slot", 1),
    "element": set_list("element", 40),
    "negative element": set_list("element", -1),
    "first image": set_list("first image", 1),
    "next image": set_list("next image", -1),
    "last image": set_list("last image", 2**31 - 1),
    "image's out": set_list("o", 17),
    "image's negative out": set_list("o", -1),
    "image's in": set_list("i", 17),
    "sign": set_list("sign", 0),
    "permutation": set_list("permutation", 4),
    "negative permutation": set_list("permutation", -1),
    "two images in one place": repeat_image,
    "pixel": set_entry("permutation", -1, 25),
    "negative pixel": set_entry("permutation", -1, -1),
    "first permutation": swap_identity,
}
BAD = [
    *(
        pytest.param(change, direct, id=f"{name}-{direct}")
        for name, change in BAD_ANYWHERE.items()
        for direct in (0, 1)
    ),
    *(pytest.param(change, 0, id=name) for name, change in BAD_BY_HARMONICS.items()),
    pytest.param(set_record(3, 1), 1, id="rows directly"),
    pytest.param(set_record(5, 1), 1, id="slots directly"),
]


@pytest.mark.parametrize(("change", "direct"), BAD)
def test_bad_arguments(change: Callable[[Arrays], None], direct: int) -> None:
    f = core.layer(11, sizes=(5, 6), direct=bool(direct))
    change(f)
    for operation in ("expand_forward", "expand_backward"):
        with pytest.raises(EqconvError, match="impossible"):
            kernels.core("cpu").call(operation, np.float32, f)


@pytest.mark.parametrize("operation", ["expand_forward", "expand_backward"])
@pytest.mark.parametrize("written", ["weights", "filter"])
def test_missing_arrays(operation: str, written: str) -> None:
    f = {**core.layer(11), written: None}
    with pytest.raises(EqconvError, match="impossible"):
        kernels.core("cpu").call(operation, np.float32, f)


def test_layers_have_what_the_tests_are_about() -> None:
    f = core.layer(sum(map(ord, "ragged")))
    assert (f["pairs"][..., 0] < 0).any()
    assert len(np.unique(f["pairs"][..., 0])) > 4
    assert len(np.unique(np.diff(f["out_starts"]))) > 1
    assert not np.array_equal(f["pairs"][..., 1][f["pairs"][..., 0] >= 0], np.sort(f["pairs"][..., 1], axis=None))
    assert DIRECT == 1
