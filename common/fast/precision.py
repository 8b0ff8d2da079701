"""Dtypes of the weights: frozen ones in float32 or bfloat16, trained ones always in float32."""

from typing import Any, Literal, get_args

import torch
from torch import nn

from common.errors import InputError

FrozenDtype = Literal["float32", "bfloat16"]
"""Dtypes of frozen weights."""


def resolve_frozen_dtype(dtype: str, device: torch.device, mixed_precision: str) -> str:
    """What "auto" stands for: bfloat16 on a GPU launched with mixed precision in bf16, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" and mixed_precision == "bf16" else "float32"


def hold_frozen(model: Any, dtype: str, device: torch.device) -> None:
    """Store the frozen weights of linear layers and embeddings in `dtype` and run the model under autocast to it.

    Autocast alone would cast every frozen weight in every step; weights stored in bfloat16 need no cast and half the
    memory. LayerNorms, a thousandth of the parameters, do not change. "float32" changes nothing.
    """
    if dtype not in get_args(FrozenDtype):
        raise InputError(f"frozen_dtype is {dtype!r}: choose one of {', '.join(get_args(FrozenDtype))}")
    kind = getattr(torch, dtype)
    if kind == torch.float32:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(kind)
    model.forward = torch.autocast(device.type, dtype=kind)(model.forward)
