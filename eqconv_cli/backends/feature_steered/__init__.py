"""Feature-steered graph convolution (FeaStNet): each neighbour is shared softly among M weight matrices.

| what                         | where                                                            |
| ---------------------------- | ---------------------------------------------------------------- |
| the formula, float64         | reference.py                                                     |
| inputs                       | problems.py (meshes.py, graphs.py), cases.py (published ones)     |
| algorithms                   | numpy_algorithms.py, torch_algorithms.py, tensorflow_algorithms.py |
| the operator                 | numpy.py, torch.py, tensorflow.py (plan.py, arguments.py, options.py) |
| the compiled kernels         | fused.py, torch_fused.py, tensorflow_fused.py, schedule.py; cuda/feature_steered |
| layers and the demo model    | torch_layers.py, tensorflow_layers.py, *_models.py                |
| the choice of "auto"         | cost_model.py                                                    |
| what must hold in any case   | invariants.py                                                    |
"""

from __future__ import annotations

from typing import Literal

from eqconv_cli.backends.feature_steered import cost_model
from eqconv_cli.backends.feature_steered.cases import CASES
from eqconv_cli.backends.feature_steered.invariants import CHECKS
from eqconv_cli.backends.feature_steered.problems import PROBLEMS, graph_file, mesh_file
from eqconv_cli.backends.feature_steered.variants import VARIANTS
from eqconv_cli.catalog import Arrays, Cost, Family, Operation
from eqconv_cli.kernels.doors import missing_kernels


def _sizes(inputs: Arrays) -> cost_model.Sizes:
    matrices, channels, outputs = inputs["var_w"].shape
    vertices = int(inputs["sizes"].sum()) if "sizes" in inputs else int(inputs["dense_shape"][:-1].prod())
    return cost_model.Sizes(vertices, len(inputs["values"]), channels, outputs, matrices)


def cost(inputs: Arrays) -> dict[str, Cost]:
    """Flops and bytes that any implementation needs, of each pass."""
    sizes, itemsize = _sizes(inputs), inputs["data"].dtype.itemsize
    flops, moved = cost_model.flops(sizes), cost_model.minimal_bytes(sizes, itemsize)
    return {
        "forward": Cost(flops, moved),
        "forward+backward": Cost(
            flops + cost_model.backward_flops(sizes), moved + cost_model.minimal_backward_bytes(sizes, itemsize)
        ),
    }


def explain(inputs: Arrays) -> list[str]:
    """What version="auto" takes for these inputs in each framework on the CPU, and why."""
    frameworks: tuple[Literal["numpy", "torch", "tensorflow"], ...] = ("numpy", "torch", "tensorflow")
    choices = {}
    for framework in frameworks:
        needed = ("cpu",) if framework == "numpy" else (framework, "cpu")
        fused = not missing_kernels(*needed)
        choices[framework] = cost_model.choose(_sizes(inputs), framework, training=True, fused=fused)
    return [f"auto@{framework}: {choice.version} ({choice.reason})" for framework, choice in choices.items()]


CONVOLUTION = Operation(
    name="convolution",
    title="Feature-steered graph convolution",
    formula="y_i = b + Σ_m W_mᵀ Σ_{j∈N(i)} w_ij softmax_m(u_m·x_i + v_m·x_j + c_m) x_j",
    reference="eqconv_cli.backends.feature_steered.reference:reference",
    reference_gradients="eqconv_cli.backends.feature_steered.reference:reference_gradients",
    differentiable=("data", "data_out", "values", "var_u", "var_v", "var_c", "var_w", "var_b"),
    checks=CHECKS,
    cost=cost,
    baseline="v1+sorted+last@tensorflow",
)

FAMILY = Family(
    name="feature_steered",
    title=CONVOLUTION.title,
    paper="Verma, Boyer, Verbeek: FeaStNet, CVPR 2018, arXiv 1706.05206",
    operations=(CONVOLUTION,),
    problems=PROBLEMS,
    variants=VARIANTS,
    cases=CASES,
    file_problems={"mesh": mesh_file, "graph": graph_file},
    explain=explain,
)
