"""Draws basis.png: what ``eqconv basis --group C8 --plot`` writes, in fewer colours so that the file is small.

Run it from anywhere as ``python docs/images/basis.py``; it needs ``eqconv[plots]``.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from eqconv_cli.backends.steerable.study import study
from eqconv_cli.report.basis_plot import basis_figure
from eqconv_cli.studies import BasisRequest


def main() -> None:
    """Draw the figure beside this file."""
    drawn = io.BytesIO()
    basis_figure(study(BasisRequest("C8"))).savefig(drawn, dpi=130, facecolor="white")
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
