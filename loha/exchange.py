"""LoHa in peft's format."""

from torch import nn

from common.exchange import Found, Peft, on_modules
from common.methods import Tensors
from loha.method import Loha


def to_peft(method: Loha, model: nn.Module, tensors: Tensors) -> Peft:
    ends = {"A1": "hada_w1_a", "B1": "hada_w1_b", "A2": "hada_w2_a", "B2": "hada_w2_b"}
    settings = {"peft_type": "LOHA", "r": method.rank, "alpha": method.alpha}
    return on_modules(settings, {f"loha.{ours}": theirs for ours, theirs in ends.items()}, model, tensors)


def from_peft(found: Found) -> Loha | None:
    if found.get("peft_type") != "LOHA":
        return None
    layers, targets = found.places("hada_w1_a")
    return Loha(rank=found.get("r"), alpha=found.get("alpha"), targets=tuple(targets), layers=layers)
