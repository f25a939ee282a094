"""Pictures from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from eqconv_cli.errors import UsageError


def picture(path: str | Path) -> npt.NDArray[np.float64]:
    """A picture file as colours [H, W, 3] between 0 and 1.

    Raises:
        UsageError: it is no file, or no picture that Pillow can read; or Pillow is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"picture {str(path)!r} is not a file")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UsageError(f'picture {str(path)!r} needs the package pillow (pip install "eqconv[plots]")') from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float64) / 255
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"picture {str(path)!r} cannot be read: {error}") from error
