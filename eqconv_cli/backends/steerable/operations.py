"""The operations of the steerable family: their formulas, what is checked of them, and the work that they need."""

from __future__ import annotations

from eqconv_cli.backends.steerable.arguments import AUTO, AUTO_COMPOSITION
from eqconv_cli.backends.steerable.invariants import CHECKS
from eqconv_cli.backends.steerable.orbits import row_orbits
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.backends.steerable.problem_arrays import layer_of, plan_of
from eqconv_cli.catalog import Arrays, Cost, Operation
from eqconv_cli.kernels.doors import missing_kernels

_REFERENCE = "eqconv_cli.backends.steerable.reference:{}"


def expansion_flops(plan: Plan) -> float:
    """Of the cheapest known way: by harmonics, once for each orbit of the grid's symmetries."""
    total = 0
    for pair in plan.pairs:
        basis, (outs, ins, _) = pair.basis, pair.shape
        rows = len(row_orbits(basis.space, basis.in_rep, basis.out_rep).rows)
        slots = len(basis.slots.element) + len(basis.harmonics) * plan.sampling.pixels
        total += 2 * outs * ins * rows * slots
    return float(total)


def expansion_cost(inputs: Arrays) -> dict[str, Cost]:
    """Each weight read and each number of the filter written once; the transposed map costs as much."""
    plan, itemsize = plan_of(inputs), inputs["weights"].dtype.itemsize
    forward = Cost(expansion_flops(plan), itemsize * (plan.weights_size + _filter_size(plan)))
    return {"forward": forward, "forward+backward": Cost(2 * forward.flops, 2 * forward.bytes)}


def expansion_facts(inputs: Arrays) -> dict[str, float]:
    """Sizes of the layer, and the bytes that the dense basis would take in float32."""
    plan = plan_of(inputs)
    out_channels, in_channels, k, _ = plan.filter_shape
    dense = 4 * sum(len(pair.basis) * pair.basis.out_rep.size * pair.basis.in_rep.size for pair in plan.pairs) * k * k
    facts = {"C_out": out_channels, "C_in": in_channels, "k": k, "weights": plan.weights_size, "dense_bytes": dense}
    return {name: float(value) for name, value in facts.items()}


def layer_cost(inputs: Arrays) -> dict[str, Cost]:
    """The convolution and the expansion, each of the two gradients of the convolution as much as itself."""
    plan, how, x = plan_of(inputs), layer_of(inputs), inputs["x"]
    reach = how.dilation * (plan.sampling.size - 1) + 1
    sides = [(n + 2 * how.padding - reach) // how.stride + 1 for n in x.shape[2:]]
    pixels = len(x) * sides[0] * sides[1]
    convolution, expansion = 2.0 * pixels * _filter_size(plan), expansion_flops(plan)
    moved = x.dtype.itemsize * (x.size + plan.weights_size + pixels * plan.out_type.size)
    return {
        "forward": Cost(convolution + expansion, moved),
        "forward+backward": Cost(3 * convolution + 2 * expansion, 2 * moved),
    }


def layer_facts(inputs: Arrays) -> dict[str, float]:
    """Sizes of the layer and of its images."""
    batch, _, height, width = inputs["x"].shape
    images = {"B": float(batch), "H": float(height), "W": float(width)}
    return {**images, **expansion_facts(inputs)}


def _filter_size(plan: Plan) -> int:
    out_channels, in_channels, k, _ = plan.filter_shape
    return out_channels * in_channels * k * k


OPERATIONS = (
    Operation(
        name="expansion",
        title="Expansion of a steerable kernel",
        formula="κ_oi = Σ_b w_b Q_out e_b Q_in⁻¹, e_b = g_r(|x|) R(μφ + γ) Fˢ / norm",
        reference=_REFERENCE.format("expansion"),
        reference_gradients=_REFERENCE.format("expansion_gradients"),
        baseline="dense@torch",
        differentiable=("weights",),
        checks=CHECKS["expansion"],
        cost=expansion_cost,
        facts=expansion_facts,
        value_title="every algorithm gives the same filter",
        gradient_title="gradients of the weights are those of the formula",
    ),
    Operation(
        name="layer",
        title="Steerable convolution",
        formula="y(q) = bias + Σ_p κ(p) x(q + p)",
        reference=_REFERENCE.format("layer"),
        reference_gradients=_REFERENCE.format("layer_gradients"),
        baseline="dense@torch",
        differentiable=("x", "weights", "bias"),
        checks=CHECKS["layer"],
        cost=layer_cost,
        facts=layer_facts,
        value_title="the convolution with the filter of the formula",
        gradient_title="gradients of the image, the weights and the bias are those of the formula",
    ),
)


def explain(inputs: Arrays) -> list[str]:
    """What algorithm="auto" takes in each framework on the CPU, and why."""
    lines = []
    for framework in ("numpy", "torch", "tensorflow"):
        reasons = missing_kernels(*(("cpu",) if framework == "numpy" else (framework, "cpu")))
        choice = f"{AUTO_COMPOSITION} (the compiled kernels are missing)" if reasons else f"{AUTO} (compiled)"
        lines.append(f"auto@{framework}: {choice}")
    return lines
