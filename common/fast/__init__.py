"""Faster implementations of the same mathematics; `prepare` is the only entry point.

Methods do not depend on it: their nn.Linear and nn.Dropout, and F.linear inside a branch, become faster with the rest
of the model. `--reference` trains without it and gives the same loss curve.
"""

from dataclasses import dataclass
from typing import Any

import torch

from common.encoders import first_position, generates
from common.errors import check
from common.fast.dropout import use_fast_dropout
from common.fast.linear import use_fast_linear
from common.fast.packing import Layout, take_packed
from common.fast.precision import hold_frozen, resolve_frozen_dtype


@dataclass(frozen=True)
class Prepared:
    """How a prepared model runs."""

    layout: Layout | None
    """How its batches are packed; None = padded batches."""
    frozen_dtype: str
    """Dtype of its frozen weights."""
    by_length: bool = False
    """Whether a batch is cut into smaller ones of about one length, which is exact, since the loss is a sum."""


def prepare(
    model: Any,
    device: torch.device,
    frozen_dtype: str = "auto",
    mixed_precision: str = "no",
    padding: str = "none",
    reference: bool = False,
) -> Prepared:
    """Make a model with an injected method faster, in place, for training and prediction.

    Args:
        model: on the CPU; its trained parameters require a gradient. `needs_padding`, if it has that and it is True:
            something in it cannot take packed sequences.
        device: where the model will run.
        frozen_dtype: dtype of frozen weights; auto = bfloat16 on a GPU with bf16 mixed precision, else float32.
        mixed_precision: of `accelerate launch`.
        padding: none = packed sequences; batch = pad to the longest sequence of the batch.
        reference: do not change the model: plain modules, padded batches, torch's own dropout and linear layers.

    Raises:
        InputError: an unknown dtype, or one that the reference does not support.
    """
    if reference:
        check({"reference and frozen_dtype bfloat16: leave one of them out": frozen_dtype == "bfloat16"})
        return Prepared(None, "float32")
    frozen_dtype = resolve_frozen_dtype(frozen_dtype, device, mixed_precision)
    hold_frozen(model, frozen_dtype, device)
    use_fast_linear(model)  # after the cast, since it prepacks the weights
    if padding == "batch" or getattr(model, "needs_padding", False):
        return Prepared(None, frozen_dtype)
    use_fast_dropout(model)
    if generates(model):  # on a GPU small batches take as long as large ones
        return Prepared(None, frozen_dtype, by_length=device.type == "cpu")
    take_packed(model)
    return Prepared(Layout(first_position(model), rounded=device.type == "cpu"), frozen_dtype)
