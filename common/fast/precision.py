"""How weights are held: frozen ones in few bits where asked, trained ones always in float32."""

from typing import Any, Literal, get_args

import torch
from torch import nn

from common.errors import InputError

FrozenDtype = Literal["float32", "bfloat16"]
"""Types that frozen weights can be held in."""


def hold_frozen(model: Any, dtype: str, device: torch.device) -> None:
    """Store the frozen weights of linear layers and embeddings in `dtype` and compute under autocast to it.

    Autocast alone would cast every frozen weight again in every step; stored in bfloat16 they need no cast and half
    the memory. LayerNorms, a thousandth of the parameters, stay as they are. "float32" changes no type.
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
