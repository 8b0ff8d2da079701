"""Dropout for CPUs, where the random numbers of nn.Dropout take a noticeable share of a training step."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Size of a dtype in bytes -> integer dtype of that size: on the same bits, integer products are faster."""


class Bits:
    """Random bits from SFC64, which is several times as fast as torch's generator."""

    def __init__(self) -> None:
        self.generator: np.random.SFC64 | None = None

    def seed(self) -> None:
        """Seed from torch's global generator, so that the state of that one alone decides all random bits."""
        self.generator = np.random.SFC64(int(torch.randint(1 << 62, (1,))))

    def draw(self, n: int) -> tuple[torch.Tensor, float]:
        """Random bytes, (n,) of int8, and a uniform random number from 0 to 1."""
        if self.generator is None:
            self.seed()
        words = self.generator.random_raw(-(-n // 8) + 1)  # type: ignore[union-attr]
        return torch.from_numpy(words.view(np.int8))[:n], int(words[-1]) / 2**64


BITS = Bits()
"""The random bits of all dropout in this process; every forward pass in training seeds them."""


def keep_masks(shapes: Sequence[tuple[int, ...]], probability: float, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Dropout masks of these shapes and of an integer dtype: 0 for a dropped unit, 1 for a kept one.

    A unit is dropped if its 8 random bits are below 256 * probability, rounded up or down at random for each row of
    the last dimension, so that the probability is exact on average. Units of one row share that rounding: with
    probability 0.1, their correlation is 0.00004.
    """
    sizes = [math.prod(shape) for shape in shapes]
    rows = [size // shape[-1] for size, shape in zip(sizes, shapes, strict=True)]
    bits, number = BITS.draw(sum(sizes) + sum(rows))
    whole, part = divmod(256 * probability, 1)
    up = min(int(256 * part + number), 255)  # so many of 256 rows round up, itself rounded at random; int8 ends at 127
    least = torch.empty(sum(rows), dtype=torch.int8 if whole < 255 else torch.int16)
    torch.lt(bits[sum(sizes) :], up - 128, out=least).add_(int(whole) - 128)
    parts = zip(shapes, bits.split([*sizes, sum(rows)]), least.split(rows), strict=False)
    for shape, own_bits, own_least in parts:
        into = torch.empty(shape, dtype=dtype)
        yield torch.ge(own_bits.view(shape), own_least.view(*shape[:-1], 1), out=into)


def keep_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """A dropout mask of this shape: 0 for a dropped unit, 1 / (1 - probability) for a kept one."""
    kept = next(keep_masks([shape], probability, INTEGERS[dtype.itemsize]))
    return kept.mul_(_scale_bits(probability, dtype)).view(dtype)


@functools.cache
def _scale_bits(probability: float, dtype: torch.dtype) -> int:
    """The bits of 1 / (1 - probability) as an integer."""
    return int(torch.tensor(1 / (1 - probability), dtype=dtype).view(INTEGERS[dtype.itemsize]))


class FastDropout(nn.Dropout):
    """nn.Dropout that uses `keep_mask` on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> the same"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * keep_mask(x.shape, self.p, x.dtype)


def use_fast_dropout(model: nn.Module) -> None:
    """Make every nn.Dropout of a model use `BITS`, which each forward pass in training seeds."""

    def seed(module: nn.Module, _args: Any) -> None:
        if module.training:
            BITS.seed()

    model.register_forward_pre_hook(seed)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout  # keeps the hooks
