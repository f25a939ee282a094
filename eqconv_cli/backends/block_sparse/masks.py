"""Masks of a wanted sparsity: where computing is worth it, as the problems and the benchmarks have it.

Each maker returns float64 [H, W] of zeros and ones; ``sparsity`` is the share of zeros that it aims at.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from eqconv_cli.backends.pictures import picture
from eqconv_cli.errors import UsageError

Mask = npt.NDArray[np.float64]


def topleft(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """A rectangle in the corner: the synthetic mask of Ren et al. (SBNet, section 4.2), the best case for blocks."""
    share = (1 - sparsity) ** 0.5
    mask = np.zeros((height, width))
    mask[: int(np.ceil(share * height)), : int(np.ceil(share * width))] = 1
    return mask


def blobs(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """Smoothed noise above its quantile: connected areas with ragged edges, as roads and attention maps have them."""
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(height, width)), max(height, width) / 40)
    return _ones(smooth > np.quantile(smooth, sparsity))


def noise(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """Every pixel on its own: the worst case for blocks."""
    return _ones(rng.random((height, width)) >= sparsity)


def rings(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """Circles about the centre, one pixel wide: thin, but connected."""
    radius = np.hypot(*np.ogrid[-(height / 2) : height / 2 : height * 1j, -(width / 2) : width / 2 : width * 1j])
    share = 1 - sparsity
    return _ones((radius * share) % 1 < share)


def empty(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """No pixel."""
    return np.zeros((height, width))


def full(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """Every pixel."""
    return np.ones((height, width))


def single(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """One pixel somewhere."""
    mask = np.zeros((height, width))
    mask[rng.integers(height), rng.integers(width)] = 1
    return mask


def corner(rng: np.random.Generator, height: int, width: int, sparsity: float) -> Mask:
    """The last pixel of the image, which a count of blocks that is too small leaves out."""
    mask = np.zeros((height, width))
    mask[-1, -1] = 1
    return mask


MAKERS: dict[str, Callable[[np.random.Generator, int, int, float], Mask]] = {
    "topleft": topleft,
    "blobs": blobs,
    "noise": noise,
    "rings": rings,
    "empty": empty,
    "full": full,
    "single": single,
    "corner": corner,
}


def make(kind: str, rng: np.random.Generator, images: int, height: int, width: int, sparsity: float = 0.5) -> Mask:
    """Masks [N, H, W], each image its own draw.

    Raises:
        ValueError: there is no such kind, or the sparsity is outside [0, 1].
    """
    if kind not in MAKERS:
        raise ValueError(f"mask={kind!r} is unknown: allowed: {', '.join(MAKERS)}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity}: a share between 0 and 1 is needed")
    return np.stack([MAKERS[kind](rng, height, width, sparsity) for _ in range(images)])


def stored(path: str | Path) -> Mask:
    """A mask file as zeros and ones [N, H, W]: what is above 0.5 is active.

    Args:
        path: an ``.npy`` file or an ``.npz`` archive of one array, bool or real, [H, W] or [N, H, W]; or a picture,
            whose brightness between 0 and 1 counts.

    Raises:
        UsageError: it is no file or cannot be read; an archive of another number of arrays; an array of another shape
            or dtype, without a pixel, or with NaN.
    """
    path = Path(path)
    if path.suffix.lower() not in (".npy", ".npz"):
        return _ones(gray(picture(path)) > 0.5)[None]
    values = _array(path)
    if values.dtype.kind not in "biuf":
        raise UsageError(f"mask {str(path)!r} has dtype {values.dtype}: bool or real numbers are needed")
    if values.ndim not in (2, 3) or not values.size:
        raise UsageError(f"mask {str(path)!r} has shape {list(values.shape)}: [H, W] or [N, H, W] is needed, not empty")
    if np.isnan(values).any():
        raise UsageError(f"mask {str(path)!r} has NaN: a pixel is active or not")
    return _ones(values > 0.5).reshape(-1, *values.shape[-2:])


def _array(path: Path) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file, or the only one of an ``.npz`` archive; raises UsageError."""
    if not path.is_file():
        raise UsageError(f"mask {str(path)!r} is not a file")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"mask {str(path)!r} cannot be read: {error}") from error
    if len(arrays) != 1:
        names = ", ".join(sorted(arrays)) or "nothing"
        raise UsageError(f"mask {str(path)!r} holds {len(arrays)} arrays ({names}): one is needed")
    return next(iter(arrays.values()))


def gray(colours: npt.NDArray[np.float64]) -> Mask:
    """Brightness [H, W] between 0 and 1 (ITU-R BT.601 weights)."""
    return colours @ np.array([0.299, 0.587, 0.114])


def _ones(active: npt.NDArray[np.bool_]) -> Mask:
    return active.astype(np.float64)
