from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from eqconv_cli.backends.feature_steered import arguments
from eqconv_cli.backends.feature_steered.arguments import Operand
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution
from tests.feature_steered.support import random_problem

#: All extents differ, so an error that names the wrong axis shows.
SHAPES = {"batch": (2,), "centres": 7, "channels": 3, "outputs": 5, "matrices": 4}
OPERANDS = ("data", "data_out", "values", "var_u", "var_v", "var_c", "var_w", "var_b")
#: How error texts call the operands whose name is not that of an argument.
SPOKEN = {"data_out": "data's centre part", "values": "neighbors"}


@pytest.fixture
def tensors():
    inputs = random_problem(0, edges=20, **SHAPES)
    inputs["data_out"] = inputs["data"] + 1
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def convolve(tensors, sizes=None, **options):
    neighbors = (tensors["indices"], tensors["values"], tensors["dense_shape"])
    parameters = (tensors[name] for name in ("var_u", "var_v", "var_c", "var_w", "var_b"))
    data = (tensors["data"], tensors["data_out"]) if "data_out" in tensors else tensors["data"]
    return feature_steered_convolution(data, neighbors, sizes, *parameters, **options)


def test_everything_fits(tensors):
    assert convolve(tensors, validate="full").shape == (2, 7, 5)


def resized(tensor, axis, extent):
    index = torch.arange(extent) % tensor.shape[axis]
    return tensor.index_select(axis, index)


AXES = [
    (name, axis)
    for name, rank in {"data": 3, "data_out": 3, "var_u": 2, "var_v": 2, "var_c": 1, "var_w": 3, "var_b": 1}.items()
    for axis in range(rank)
]


@pytest.mark.parametrize(("name", "axis"), AXES)
@pytest.mark.parametrize("change", [-1, 1])
def test_one_extent_off_by_one(tensors, name, axis, change):
    right = tensors[name].shape[axis]
    tensors[name] = resized(tensors[name], axis, right + change)
    with pytest.raises(ValueError) as error:
        convolve(tensors)
    text = str(error.value)
    assert SPOKEN.get(name, name) in text
    assert {str(right), str(right + change)} <= set(re.findall(r"\d+", text)), text


@pytest.mark.parametrize("name", OPERANDS[:2] + OPERANDS[3:])
def test_one_dimension_more(tensors, name):
    tensors[name] = tensors[name][None]
    with pytest.raises(ValueError) as error:
        convolve(tensors)
    text = str(error.value)
    assert SPOKEN.get(name, name) in text
    shape = tuple(tensors[name].shape)
    assert str(list(shape)) in text or f"rank {len(shape)}" in text, text


@pytest.mark.parametrize("name", ["data", "var_u", "var_v", "var_c", "var_w", "var_b"])
def test_one_dimension_less(tensors, name):
    tensors[name] = tensors[name][0]
    with pytest.raises(ValueError) as error:
        convolve(tensors)
    assert name in str(error.value)


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.complex128])
def test_one_dtype_differs(tensors, name, dtype):
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises((TypeError, ValueError)) as error:
        convolve(tensors)
    text = str(error.value)
    assert SPOKEN.get(name, name) in text
    assert str(dtype).removeprefix("torch.") in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_data_must_be_float32_or_float64(tensors, dtype):
    everything = {name: tensor.to(dtype) if name in OPERANDS else tensor for name, tensor in tensors.items()}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"data has dtype {kind}: allowed: float32, float64"):
        convolve(everything)


@pytest.mark.parametrize("floats", [torch.float32, torch.float64])
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_valid_dtypes(tensors, floats, integers):
    tensors = {name: tensor.to(floats if name in OPERANDS else integers) for name, tensor in tensors.items()}
    del tensors["data_out"]
    output = convolve(tensors, torch.tensor([7, 7], dtype=integers))
    assert output.dtype == floats and output.shape == (2, 7, 5)


@pytest.mark.parametrize(
    ("sizes", "kind", "text"),
    [
        (torch.tensor([7.0, 7.0]), TypeError, "sizes has dtype float32: an integer dtype is needed"),
        (torch.tensor([7]), ValueError, "sizes has shape [1] but neighbors has batch dimensions [2]"),
        (torch.tensor([[7, 7]]), ValueError, "sizes has shape [1, 2] but neighbors has batch dimensions [2]"),
        (torch.tensor([7, 8]), ValueError, "sizes[1] is 8: allowed: 0 to the 7 vertices"),
        (torch.tensor([-1, 7]), ValueError, "sizes[0] is -1: allowed: 0 to the 7 vertices"),
    ],
)
def test_sizes(tensors, sizes, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        convolve(tensors, sizes)


@pytest.mark.parametrize(
    ("option", "value"),
    [("version", "v4"), ("segment_sum_impl", "fast"), ("softmax", "hard"), ("validate", "some"),
     ("transform_data_first", "vertices")],
)  # fmt: skip
def test_unknown_option(tensors, option, value):
    with pytest.raises(ValueError, match=re.escape(f"{option}={value!r} is unknown: allowed: ")):
        convolve(tensors, **{option: value})


@pytest.mark.parametrize("version", ["auto", "v2", "v3", "gather_sum", "sparse_matmul", "pyg"])
def test_the_order_at_the_edges_belongs_to_v1(tensors, version):
    with pytest.raises(ValueError, match=f"version='v1' only, not of version='{version}'"):
        convolve(tensors, version=version, transform_data_first="edges")


def test_at_least_one_weight_matrix(tensors):
    for name in ("var_u", "var_v"):
        tensors[name] = tensors[name][:, :0]
    tensors["var_c"], tensors["var_w"] = tensors["var_c"][:0], tensors["var_w"][:0]
    with pytest.raises(ValueError, match="var_u has 0 columns: at least one weight matrix is needed"):
        convolve(tensors)


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_full_validation_wants_finite_values(tensors, name, value):
    last = tuple(extent - 1 for extent in tensors[name].shape)
    tensors[name][last] = value
    convolve(tensors)
    spoken = {"values": "neighbors.values"}.get(name, SPOKEN.get(name, name))
    with pytest.raises(ValueError, match=re.escape(f"{spoken} is {value} at {list(last)}: validate='full'")):
        convolve(tensors, validate="full")


@pytest.mark.parametrize("name", ["data", "data_out", "var_u", "var_v", "var_c", "var_w", "var_b"])
def test_arrays_of_another_library(tensors, name):
    tensors[name] = tensors[name].numpy()
    with pytest.raises(TypeError, match=f"{SPOKEN.get(name, name)} is a ndarray: expected a torch.Tensor"):
        convolve(tensors)


def test_more_centres_than_vertices(tensors):
    del tensors["data_out"]
    tensors["dense_shape"] = torch.tensor([2, 8, 7])
    with pytest.raises(ValueError, match=r"neighbors has 8 rows but data has 7 vertices.*pair \(data, centre data\)"):
        convolve(tensors)


def test_unknown_extents_pass():
    data = Operand((None, None, 3), "float32")
    arguments.check_data("data", data)
    arguments.check_sizes(Operand((5,), "int32"), data)
    arguments.check_neighbors(Operand((2, None, 9), "float32"), data)
    arguments.check_neighbors(Operand((2, None, 9), "float32"), data, Operand((2, 4, None), "float32"))
    shapes = ((3, None), (None, 4), (4,), (None, 3, None), (6,))
    arguments.check_parameters(data, *(Operand(shape, "float32") for shape in shapes))


@pytest.mark.parametrize(("shape", "dtype", "kind"), [((4,), "int32", ValueError), ((), "int32", ValueError),
                                                      ((5, 1), "int64", ValueError), ((5,), "float32", TypeError),
                                                      ((5,), "bool", TypeError)])  # fmt: skip
def test_sizes_against_data(shape, dtype, kind):
    with pytest.raises(kind, match="sizes has"):
        arguments.check_sizes(Operand(shape, dtype), Operand((5, 7, 3), "float32"))


def test_every_integer_dtype_is_one():
    assert all(np.issubdtype(np.dtype(name), np.integer) for name in arguments.INTEGERS)
