"""Steerable convolution on the plane: kernels that commute with a group of rotations and reflections (E2CNN).

| what                          | where                                                              |
| ----------------------------- | ------------------------------------------------------------------ |
| the definitions, float64      | reference.py                                                       |
| fields, solutions, sampling   | fields.py, angular.py, sampling.py; maths/planar_groups.py, maths/representations.py |
| the basis, a layer's plan     | basis.py, orbits.py, plan.py, packed.py                            |
| from weights to a filter      | *_expansion.py, tables.py, arguments.py                            |
| the compiled kernels          | *_fused.py, options.py; cuda/steerable                             |
| layers                        | *_layers.py, convolution.py, bias.py, initialisation.py            |
| inputs                        | problems.py, problem_arrays.py                                     |
| runs of the catalog           | *_runs.py, variants.py                                             |
| what must hold in any case    | operations.py, invariants.py, equivariance.py                      |
"""

from __future__ import annotations

from eqconv_cli.backends.steerable.operations import OPERATIONS, explain
from eqconv_cli.backends.steerable.problems import PROBLEMS, image_file
from eqconv_cli.backends.steerable.variants import VARIANTS
from eqconv_cli.catalog import Family

FAMILY = Family(
    name="steerable",
    title="Steerable convolution",
    paper="Weiler, Cesa: General E(2)-Equivariant Steerable CNNs, NeurIPS 2019, arXiv 1911.08251",
    operations=OPERATIONS,
    problems=PROBLEMS,
    variants=VARIANTS,
    file_problems={"image": image_file},
    explain=explain,
)
