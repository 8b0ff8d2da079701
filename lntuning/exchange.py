"""LN tuning in peft's format."""

from torch import nn

from common.exchange import Found, Peft, on_modules
from common.methods import Tensors
from lntuning.method import LnTuning


def to_peft(method: LnTuning, model: nn.Module, tensors: Tensors) -> Peft:
    ends = {end: f"ln_tuning_layers.{end}" for end in ("weight", "bias")}
    return on_modules({"peft_type": "LN_TUNING"}, ends, model, tensors)


def from_peft(found: Found) -> LnTuning | None:
    return LnTuning() if found.get("peft_type") == "LN_TUNING" else None
