"""What TensorFlow tells of tensors before their values are there: extents and devices.

Extents are Python integers where they are known and scalar tensors in a traced function where they are not.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tensorflow as tf

#: A length or a number of rows: ``int | tf.Tensor``.
Extent = Any


def extent(tensor: tf.Tensor, axis: int) -> Extent:
    """The length of an axis: an integer when it is known, else a scalar tensor, int64."""
    known = tensor.shape[axis]
    return tf.shape(tensor, out_type=tf.int64)[axis] if known is None else known


def is_symbolic(*values: Any) -> bool:
    """Whether any of the values is known only when a traced function runs."""
    return any(tf.is_symbolic_tensor(value) for value in values)


@cache
def device_name(device: str) -> str:
    """The kind and number of a device: "/CPU:0" for what TensorFlow writes with job, replica and task."""
    spec = tf.DeviceSpec.from_string(device)
    return f"/{spec.device_type}:{spec.device_index or 0}"
