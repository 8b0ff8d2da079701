"""Dropout for CPUs, where drawing the random numbers of nn.Dropout is a noticeable share of a training step."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The type that holds the bits of a number of so many bytes: products of whole numbers are the faster ones."""


class Bits:
    """Random bits by SFC64, which is several times as fast as torch's generator."""

    def __init__(self) -> None:
        self.generator: np.random.SFC64 | None = None

    def seed(self) -> None:
        """Begin anew at a number of torch's global generator, so that its state alone decides what is drawn."""
        self.generator = np.random.SFC64(int(torch.randint(1 << 62, (1,))))

    def draw(self, n: int) -> tuple[torch.Tensor, float]:
        """(n,), int8, and a number from 0 to 1."""
        if self.generator is None:
            self.seed()
        words = self.generator.random_raw(-(-n // 8) + 1)  # type: ignore[union-attr]
        return torch.from_numpy(words.view(np.int8))[:n], int(words[-1]) / 2**64


BITS = Bits()
"""What all dropout of this process is drawn from; every forward pass in training seeds it."""


def keep_masks(shapes: Sequence[tuple[int, ...]], probability: float, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Tensors of these shapes that are 0 where a unit is dropped and 1 where it is kept, of a type of whole numbers.

    A unit is dropped where its 8 random bits are below 256 * probability, rounded up or down at random for each row
    of a last dimension, so that the probability is met. Units of one row share that rounding: with 0.1, their
    correlation is 0.00004.
    """
    sizes = [math.prod(shape) for shape in shapes]
    rows = [size // shape[-1] for size, shape in zip(sizes, shapes, strict=True)]
    bits, number = BITS.draw(sum(sizes) + sum(rows))
    whole, part = divmod(256 * probability, 1)
    up = min(int(256 * part + number), 255)  # of 256 rows, rounded at random too; an int8 has no 128
    least = torch.empty(sum(rows), dtype=torch.int8 if whole < 255 else torch.int16)
    torch.lt(bits[sum(sizes) :], up - 128, out=least).add_(int(whole) - 128)
    parts = zip(shapes, bits.split([*sizes, sum(rows)]), least.split(rows), strict=False)
    for shape, own_bits, own_least in parts:
        into = torch.empty(shape, dtype=dtype)
        yield torch.ge(own_bits.view(shape), own_least.view(*shape[:-1], 1), out=into)


def keep_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this shape that is 0 where a unit is dropped and 1 / (1 - probability) where it is kept."""
    kept = next(keep_masks([shape], probability, INTEGERS[dtype.itemsize]))
    return kept.mul_(_kept_as(probability, dtype)).view(dtype)


@functools.cache
def _kept_as(probability: float, dtype: torch.dtype) -> int:
    """The bits of 1 / (1 - probability) as a whole number."""
    return int(torch.tensor(1 / (1 - probability), dtype=dtype).view(INTEGERS[dtype.itemsize]))


class FastDropout(nn.Dropout):
    """nn.Dropout with `keep` as its source on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> the same"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * keep_mask(x.shape, self.p, x.dtype)


def use_fast_dropout(model: nn.Module) -> None:
    """Let every nn.Dropout of a model draw from `BITS`, which each forward pass in training seeds."""

    def seed(module: nn.Module, _args: Any) -> None:
        if module.training:
            BITS.seed()

    model.register_forward_pre_hook(seed)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout  # hooks stay
