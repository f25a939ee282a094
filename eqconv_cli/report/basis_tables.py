"""The tables of ``eqconv basis``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eqconv_cli.report.console import status_text
from eqconv_cli.report.units import amount
from eqconv_cli.studies import BasisStudy, EquivarianceError, GroupElement

#: Lines of the tables of elements of the group; the JSON has all.
_MOST = 16


def title(study: BasisStudy) -> str:
    """Group, representations, kernel and dimension in one line."""
    k = study.kernel_size
    spread = "" if study.dilation == 1 else f", dilation {study.dilation}"
    fields = f"{fields_name(study.in_name)} → {fields_name(study.out_name)}"
    return f"{study.group} · {fields} · {k} × {k}{spread} · {study.dimension} kernels"


def fields_name(name: str) -> str:
    """The name of a representation; a sum of irreps as ``irreps 0 + 1 + 2``."""
    parts = name.split(" + ")
    if len(parts) > 1 and all(part.startswith("irrep_") for part in parts):
        return f"irreps {' + '.join(part.removeprefix('irrep_') for part in parts)}"
    return name


def basis_tables(study: BasisStudy) -> Group:
    """What the basis is: group, irreps, rings, sizes, and how equivariant it is."""
    parts: list[RenderableType] = [
        Text(title(study), "bold"),
        Text(""),
        *(Text(line) for line in _group_lines(study)),
        _irreps(study),
        _rings(study),
        _sizes(study),
        _errors(study),
        *(Text(line, "dim") for line in _error_lines(study)),
        Text(""),
    ]
    return Group(*parts)


def costs_tables(study: BasisStudy) -> Group:
    """The row of the specification's table of costs, and what each algorithm computes and keeps."""
    heading = Text("Costs: multiplications and additions for each number of a filter", "bold")
    return Group(heading, *_costs(study))


def elements_table(study: BasisStudy) -> Table:
    """One line an element of the basis, in the order of the weights."""
    columns = ("element", "ring", "radius", "sigma", "in", "out", "μ", "s", "γ", "offset", "shape", "norm")
    table = _table(*((name, "left" if name in ("in", "out") else "right") for name in columns))
    for element in study.elements:
        rows, width = element["shape"]
        _add(
            table,
            element["idx"],
            element["ring"],
            f"{element['radius']:g}",
            f"{element['sigma']:g}",
            f"{element['in_irrep']} #{element['ii']}",
            f"{element['out_irrep']} #{element['oo']}",
            element["frequency"],
            element["reflected"],
            "π/2" if element["gamma"] else "0",
            element["offset"],
            f"{rows} × {width}",
            f"{element['norm']:.4f}",
        )
    return table


def basis_summary(study: BasisStudy) -> Text:
    """One line: the sizes, and whether the basis is equivariant."""
    kinds = f"{study.dimension} kernels of {study.harmonics} functions on {len(study.rings)} rings"
    verdict = "equivariant" if study.passed else f"NOT equivariant within {study.tolerance:g}"
    return Text(f"{kinds}, {verdict}, in {study.seconds:.1f} s", "bold green" if study.passed else "bold red")


def element_name(element: GroupElement) -> str:
    """``45°``, or ``mirror, 45°`` for a reflection that is followed by a rotation."""
    return f"{'mirror, ' if element.flip else ''}{element.degrees:.4g}°"


def _group_lines(study: BasisStudy) -> Iterable[str]:
    rotations = [element for element in study.group_elements if not element.flip]
    step = rotations[1].degrees if len(rotations) > 1 else 360.0
    if study.order is None:
        yield f"{study.group}: all rotations{'' if study.axis_degrees is None else ' and reflections'}"
        yield f"{len(study.group_elements)} of them are tested, {step:.4g}° apart"
    else:
        shown = [element_name(element) for element in study.group_elements[:_MOST]]
        more = [] if study.order <= _MOST else ["..."]
        yield f"{study.group} has order {study.order}: {'; '.join(shown + more)}"
    if study.axis_degrees is not None:
        yield f"the mirror is a line at {study.axis_degrees:g}° to the x axis; rotations come after it"


def _irreps(study: BasisStudy) -> Table:
    table = _table(
        ("irrep", "left"),
        ("size", "right"),
        ("type", "left"),
        ("frequency", "right"),
        (f"in: {fields_name(study.in_name)}", "right"),
        (f"out: {fields_name(study.out_name)}", "right"),
    )
    for irrep in study.irreps:
        counts = [str(count or "") for count in (irrep.in_count, irrep.out_count)]
        _add(table, irrep.name, irrep.size, irrep.type, irrep.frequency, *counts)
    table.add_section()
    _add(table, "channels", "", "", "", study.in_size, study.out_size)
    return table


def _rings(study: BasisStudy) -> Table:
    names = ("ring", "radius", "sigma", "cut-off", "frequencies", "kernels")
    table = _table(*((name, "left" if name == "frequencies" else "right") for name in names))
    for number, ring in enumerate(study.rings):
        frequencies = ", ".join(map(str, ring.frequencies)) or "none"
        _add(
            table, number, f"{ring.radius:g}", f"{ring.sigma:g}", f"{ring.cutoff:.4g}", f"|μ| = {frequencies}",
            ring.elements,
        )  # fmt: skip
    return table


def _sizes(study: BasisStudy) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    density = study.densities
    rows: list[tuple[str, str, str]] = [
        ("d", str(study.dimension), "kernels, and weights of a pair of fields"),
        ("H", str(study.harmonics), "functions of the grid that they are made of"),
        ("L", str(study.slices), "most kernels of a pair of irreps"),
        ("blocks", _percent(density.blocks), "of the numbers are in blocks of irreps, before the change of basis Q"),
        ("exact", _percent(density.exact), "of the numbers are not 0, before Q"),
    ]
    if density.dense is not None:
        rows.append(("dense", _percent(density.dense), "of the numbers are not 0, after Q"))
    rows.append(("memory", amount(study.forms[0].bytes, "byte"), "of the dense basis in float32"))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _errors(study: BasisStudy) -> Table:
    table = _table(("element", "right"), ("continuous", "right"), ("on the grid", "right"), ("status", "left"))
    for error in _shown(study.errors):
        _add(table, element_name(error.element), *_numbers(error), _status(study, error))
    return table


def _error_lines(study: BasisStudy) -> Iterable[str]:
    if len(study.errors) > _MOST:
        worst = max(error.continuous or 0.0 for error in study.errors)
        grid = max(error.grid for error in study.errors)
        yield f"largest of all {len(study.errors)} elements: {worst:.1e} continuous, {grid:.1e} on the grid"
    yield "continuous: the worst kernel, at points of the plane, by its largest value"
    yield "on the grid: a random kernel, on a smooth field; exact where pixels go to pixels"


def _shown(errors: Sequence[EquivarianceError]) -> Sequence[EquivarianceError]:
    """All of a few; of many those that are exact, and others evenly spaced."""
    if len(errors) <= _MOST:
        return errors
    step = -(-len(errors) // (_MOST // 2))
    return [error for number, error in enumerate(errors) if error.exact or number % step == 0]


def _numbers(error: EquivarianceError) -> tuple[str, str]:
    return "" if error.continuous is None else f"{error.continuous:.1e}", f"{error.grid:.1e}"


def _status(study: BasisStudy, error: EquivarianceError) -> Text:
    within = (error.continuous or 0.0) <= study.tolerance and (error.grid <= study.tolerance or not error.exact)
    text = status_text("pass" if within else "fail")
    return text.append(" exact" if error.exact else "", "dim")


def _costs(study: BasisStudy) -> Iterable[RenderableType]:
    cost, density = study.costs, study.densities
    names = ("k", "d", "L", "H", "MB", "blocks", "exact", "after Q", "9a", "9b", "9c", "9c+9e")
    row = _table(*((name, "right") for name in names), padding=(0, 1, 0, 0))
    totals = [(cost.irreps, cost.irreps_products), *((c, cost.harmonic_products) for c in _harmonics(study))]
    shown = [_with_products(study, number, products) for number, products in totals]
    after = "Q = I" if cost.no_change_of_basis else "" if density.dense is None else _percent(density.dense)
    _add(
        row,
        study.kernel_size,
        study.dimension,
        study.slices,
        study.harmonics,
        f"{study.forms[0].bytes / 1e6:.3g}",
        _percent(density.blocks),
        _percent(density.exact),
        after,
        f"{cost.dense:.0f}",
        *shown,
    )
    yield row
    if cost.no_change_of_basis:
        yield Text("in brackets: without the changes of basis, which are the identity here", "dim")
    table = _table(("algorithms", "left"), ("flop", "right"), ("of dense", "right"), ("memory", "right"))
    for form in study.forms:
        share = _percent(form.flops / study.forms[0].flops)
        _add(table, ", ".join(form.algorithms), f"{form.flops:.1f}", share, amount(form.bytes, "byte"))
    yield table


def _harmonics(study: BasisStudy) -> tuple[float, float]:
    return study.costs.harmonic, study.costs.harmonic_orbit


def _with_products(study: BasisStudy, number: float, products: float) -> str:
    return f"{number + products:.0f} ({number:.0f})" if study.costs.no_change_of_basis else f"{number:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _table(*columns: tuple[str, str], padding: tuple[int, int, int, int] = (0, 1, 0, 1)) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for name, justify in columns:
        table.add_column(Text(name), justify="right" if justify == "right" else "left", overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
