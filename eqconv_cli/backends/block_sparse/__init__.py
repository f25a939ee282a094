"""Spatially sparse convolution: on blocks (SBNet), at listed pixels, and on sets of active sites (submanifold).

| what                          | where                                                              |
| ----------------------------- | ------------------------------------------------------------------ |
| the definitions, float64      | reference.py                                                       |
| inputs                        | problems.py, workloads.py (published ones), masks.py               |
| geometry, lists, sites        | geometry.py, index.py, site_patterns.py, units.py, arguments.py    |
| masks, blocks, lists of pixels | numpy_ops.py, torch_ops.py, tensorflow_ops.py                     |
| convolutions                  | *_convolution.py                                                   |
| residual units                | *_residual.py                                                      |
| sites                         | *_sites.py                                                         |
| the compiled kernels          | *_fused.py, options.py; cuda/block_sparse                          |
| runs of the catalog           | *_runs.py, problem_arrays.py; torch_peers.py                       |
| the choice of "auto"          | cost_model.py                                                      |
| what must hold in any case    | operations.py, invariants.py                                       |
"""

from __future__ import annotations

from eqconv_cli.backends.block_sparse.operations import OPERATIONS, explain
from eqconv_cli.backends.block_sparse.problems import PROBLEMS, image_file, mask_file
from eqconv_cli.backends.block_sparse.variants import VARIANTS
from eqconv_cli.catalog import Family

FAMILY = Family(
    name="block_sparse",
    title="Spatially sparse convolution",
    paper="Ren, Pokrovsky, Yang, Urtasun: SBNet, CVPR 2018, arXiv 1801.02108; Graham, van der Maaten, arXiv 1706.01307",
    operations=OPERATIONS,
    problems=PROBLEMS,
    variants=VARIANTS,
    file_problems={"mask": mask_file, "image": image_file},
    explain=explain,
)
