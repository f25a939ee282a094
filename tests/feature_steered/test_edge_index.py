"""Edge lists turned into weighted neighbourhoods."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.backends.feature_steered.edge_index import mean_neighborhood

EDGES = np.array([[0, 1, 2, 2, 3, 1, 1], [1, 1, 0, 0, 3, 2, 2]])


def test_mean_neighborhood():
    indices, weights = mean_neighborhood(EDGES, 4, 4, add_self_loops=True)
    expected = [[1, 0], [0, 2], [0, 2], [2, 1], [2, 1], [0, 0], [1, 1], [2, 2], [3, 3]]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(weights, [1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 3, 1])
    indices, weights = mean_neighborhood(EDGES, 4, 6, add_self_loops=False)
    np.testing.assert_array_equal(indices, EDGES[::-1].T)
    assert mean_neighborhood(np.empty((2, 0), int), 3, 0, True)[0].shape == (0, 2)
    with pytest.raises(ValueError, match="at most 4 targets, or add_self_loops=False"):
        mean_neighborhood(EDGES, 4, 6, add_self_loops=True)
    with pytest.raises(TypeError, match="edge_index has dtype float64"):
        mean_neighborhood(EDGES.astype(float), 4, 4, add_self_loops=True)
    with pytest.raises(ValueError, match=r"edge_index has shape \[7, 2\]: expected \[2, E\]"):
        mean_neighborhood(EDGES.T, 4, 4, add_self_loops=True)
