"""DoRA in peft's format, where it is an option of LoRA."""

import math

from torch import nn

from common.exchange import Found, Peft, on_modules
from common.methods import Tensors
from dora.method import Dora


def to_peft(method: Dora, model: nn.Module, tensors: Tensors) -> Peft:
    settings = {"peft_type": "LORA", "r": method.rank, "lora_alpha": method.alpha, "lora_dropout": method.dropout}
    ends = {"dora.A": "lora_A.weight", "dora.B": "lora_B.weight", "dora.m": "lora_magnitude_vector"}
    return on_modules(settings | {"use_dora": True}, ends, model, tensors)


def from_peft(found: Found) -> Dora | None:
    """Scaled by alpha / sqrt(r) there, it gets the alpha that gives the same here."""
    if found.get("peft_type") != "LORA" or not found.get("use_dora"):
        return None
    layers, targets = found.places("lora_A.weight")
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if found.get("use_rslora"):
        alpha *= math.sqrt(rank)
    dropout = found.get("lora_dropout", 0.0)
    return Dora(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(targets), layers=layers)
