"""The same mathematics in less time, behind one door: `prepare`.

Methods know nothing of it: what they build of nn.Linear, F.linear and nn.Dropout is made fast with the rest of the
model. `--reference` runs without it, to the same loss curve.
"""

from dataclasses import dataclass
from typing import Any

import torch

from common.encoders import first_position
from common.errors import check
from common.fast.dropout import use_fast_dropout
from common.fast.linear import use_fast_linear
from common.fast.packing import Layout, take_packed
from common.fast.precision import hold_frozen


@dataclass(frozen=True)
class Prepared:
    """How a model runs, once it is prepared."""

    layout: Layout | None
    """How its batches are packed; None = they are padded."""
    frozen_dtype: str
    """The type of its frozen weights."""


def prepare(
    model: Any,
    device: torch.device,
    frozen_dtype: str = "auto",
    mixed_precision: str = "no",
    padding: str = "none",
    reference: bool = False,
) -> Prepared:
    """Make a model with an injected method fast, in place: for training and prediction alike.

    Args:
        model: on the CPU; what is trained of it requires a gradient.
        device: that it will run on.
        frozen_dtype: of frozen weights. auto: bfloat16 on a GPU with mixed precision in bf16, else float32.
        mixed_precision: what `accelerate launch` asked for.
        padding: none = sequences lie end to end; batch = they are padded to the longest of their batch.
        reference: leave the model as it is: plain modules, padded batches, torch's own dropout and products.

    Raises:
        InputError: an unknown type, or one that the reference does not have.
    """
    if reference:
        check({"reference and frozen_dtype bfloat16: leave one of them out": frozen_dtype == "bfloat16"})
        return Prepared(None, "float32")
    if frozen_dtype == "auto":
        frozen_dtype = "bfloat16" if device.type == "cuda" and mixed_precision == "bf16" else "float32"
    hold_frozen(model, frozen_dtype, device)
    use_fast_linear(model)  # after the cast: it reorders the weights that it finds
    if padding == "batch":
        return Prepared(None, frozen_dtype)
    use_fast_dropout(model)
    take_packed(model)
    return Prepared(Layout(first_position(model), rounded=device.type == "cpu"), frozen_dtype)
