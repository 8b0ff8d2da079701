"""LoRA in peft's format."""

from torch import nn

from common.exchange import Found, Peft, on_modules
from common.methods import Tensors
from lora.method import Lora


def to_peft(method: Lora, model: nn.Module, tensors: Tensors) -> Peft:
    settings = {"peft_type": "LORA", "r": method.rank, "lora_alpha": method.alpha, "lora_dropout": method.dropout}
    ends = {"lora.A": "lora_A.weight", "lora.B": "lora_B.weight"}
    return on_modules(settings | {"use_rslora": method.rslora}, ends, model, tensors)


def from_peft(found: Found) -> Lora | None:
    if found.get("peft_type") != "LORA" or found.get("use_dora"):
        return None
    layers, targets = found.places("lora_A.weight")
    return Lora(
        rank=found.get("r"),
        alpha=found.get("lora_alpha"),
        dropout=found.get("lora_dropout", 0.0),
        targets=tuple(targets),
        rslora=found.get("use_rslora", False),
        layers=layers,
    )
