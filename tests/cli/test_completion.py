from __future__ import annotations

from eqconv_cli.commands import common


def test_names_are_completed_from_the_catalog() -> None:
    assert common.complete_family("feat") == ["feature_steered"]
    assert common.complete_variant("v1+sorted+last@") == [
        "v1+sorted+last@numpy",
        "v1+sorted+last@torch",
        "v1+sorted+last@tensorflow",
    ]
    assert common.complete_problem("corte") == ["cortex-32k"]
    assert common.complete_case("pr101") == ["pr101", "pr101-model"]
    assert common.complete_case("x") == []
