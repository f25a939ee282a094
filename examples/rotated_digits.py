"""Handwritten digits, learned upright and read at any angle: a C8-equivariant network against a plain one of its size.

Both networks have three convolutions, as many parameters, and see only the upright digits of scikit-learn. The
equivariant one ends in the maximum over the eight turns, so a turned digit gives what the upright one gives; the plain
one has never seen such a digit. Run it with ``python examples/rotated_digits.py``; it needs ``eqconv[torch]`` and
``pip install scikit-learn``, and takes less than a minute on two cores.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from eqconv_cli.torch import R2Conv, Space

#: Digits are enlarged to DIGIT pixels in the middle of an image. An odd side is halved around its own middle, so turns
#: by 90 degrees change nothing.
SIDE, DIGIT = 21, 13
ANGLES = (0, 22.5, 45, 90, 135, 180, 270)
FIELDS = (4, 6, 8)
TRAINED, BATCH, RATE = 1200, 32, 5e-3
EPOCHS = 12


class Equivariant(nn.Module):
    """Fields of C8; at the end the mean over the image and the maximum over the turns.

    Without biases what is empty stays 0, so the border of the image, which is no circle, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        space = Space.of("C8")
        self.turns = space.group.order
        types = [space.trivial_fields(1), *(space.regular_fields(count) for count in FIELDS)]
        first, second, third = (R2Conv(a, b, 5, padding=2, bias=False) for a, b in itertools.pairwise(types))
        self.features = nn.Sequential(first, nn.ReLU(), halved(), second, nn.ReLU(), third, nn.ReLU())
        self.classifier = nn.Linear(FIELDS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, side, side]."""
        fields = self.features(x).unflatten(1, (-1, self.turns))
        return self.classifier(fields.mean(dim=(3, 4)).amax(dim=2))


class Plain(nn.Module):
    """The same with ordinary channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(a, width, 5, padding=2, bias=False) for a in (1, width, width))
        self.features = nn.Sequential(first, nn.ReLU(), halved(), second, nn.ReLU(), third, nn.ReLU())
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, side, side]."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def halved() -> nn.Module:
    """Means around every other pixel: without them what lies between the pixels would depend on the angle."""
    return nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)


@dataclass(frozen=True)
class Result:
    """The share of test digits that each network reads at each angle."""

    parameters: tuple[int, int]
    equivariant: dict[float, float]
    plain: dict[float, float]


def main() -> None:
    """Train both and print the table."""
    console = Console()
    with console.status("training two networks on upright digits"):
        result = compare()
    table = Table(title="Digits read correctly, learned upright only")
    table.add_column("turned by", justify="right")
    for name, count in zip(("C8-equivariant", "plain"), result.parameters, strict=True):
        table.add_column(f"{name}\n{count} parameters", justify="right")
    for angle in ANGLES:
        table.add_row(f"{angle:g}°", f"{result.equivariant[angle]:.1%}", f"{result.plain[angle]:.1%}")
    console.print(table)


def compare(epochs: int = EPOCHS, seed: int = 0) -> Result:
    """Both networks after so many passes over the upright digits."""
    images, labels = digits()
    train, test = slice(None, TRAINED), slice(TRAINED, None)
    torch.manual_seed(seed)
    equivariant = Equivariant()
    size = parameters(equivariant)
    plain = min((Plain(width) for width in range(4, 40)), key=lambda model: abs(parameters(model) - size))
    for model in (equivariant, plain):
        fit(model, tensor(images[train]), labels[train], epochs)
    shares = [
        {angle: accuracy(model, tensor(turned(images[test], angle)), labels[test]) for angle in ANGLES}
        for model in (equivariant, plain)
    ]
    return Result((size, parameters(plain)), *shares)


def digits() -> tuple[np.ndarray, Tensor]:
    """1797 images [n, side, side] from 0 to 1, in a random order, and their labels."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    large = scipy.ndimage.zoom(found.images[order] / 16, (1, DIGIT / 8, DIGIT / 8), order=1)
    images = np.pad(large, ((0, 0), *(((SIDE - DIGIT) // 2,) * 2,) * 2))
    return images, torch.from_numpy(found.target[order]).long()


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Images [n, side, side] turned by so many degrees."""
    return scipy.ndimage.rotate(images, angle, axes=(2, 1), reshape=False, order=2) if angle else images


def tensor(images: np.ndarray) -> Tensor:
    """[n, 1, side, side]."""
    return torch.from_numpy(images).float()[:, None]


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Adam on the cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose label has the largest logit."""
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
