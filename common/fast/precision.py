"""How weights are held: frozen ones in few bits where asked, trained ones always in float32."""

from typing import Any, Literal, get_args

import torch
from torch import nn

from common.errors import InputError
from common.fast.linear import use_onednn

FrozenDtype = Literal["float32", "bfloat16"]
"""Types that frozen weights can be held in."""


def frozen_dtype(chosen: str, device: torch.device, mixed_precision: str) -> str:
    """What "auto" means on this device: bfloat16 on a GPU where the launch asked for it, else float32."""
    if chosen != "auto":
        return chosen
    return "bfloat16" if device.type == "cuda" and mixed_precision == "bf16" else "float32"


def hold_frozen(model: Any, dtype: str, device: torch.device) -> None:
    """Store the frozen weights of linear maps and embeddings in `dtype` and compute under autocast to it.

    Autocast alone would cast every frozen weight again in every step; stored in bfloat16 they need no cast and half
    the memory. LayerNorms, a thousandth of the parameters, stay as they are. "float32" changes no type.
    """
    if dtype not in get_args(FrozenDtype):
        raise InputError(f"frozen_dtype is {dtype!r}: choose one of {', '.join(get_args(FrozenDtype))}")
    kind = getattr(torch, dtype)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(kind)
    use_onednn(model)  # after the cast: it lays out what it finds
    if kind != torch.float32:
        model.forward = torch.autocast(device.type, dtype=kind)(model.forward)
