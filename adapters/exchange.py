"""Bottleneck adapters in the format of AdapterHub's library."""

from typing import Any

from torch import nn

from adapters.method import Adapters
from common.encoders import hidden_size, layers
from common.errors import InputError
from common.methods import Tensors

# What placements are there; the other fields keep the defaults of its BnConfig.
_PLACEMENTS: dict[str, dict[str, Any]] = {
    "houlsby": {"mh_adapter": True, "output_adapter": True, "original_ln_before": False},
    "pfeiffer": {"mh_adapter": False, "output_adapter": True, "original_ln_before": True},
    "parallel": {"mh_adapter": False, "output_adapter": True, "original_ln_before": False, "is_parallel": True},
}


def to_adapterhub(method: Adapters, model: nn.Module, tensors: Tensors, name: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration, and the tensors of an adapter of this name.

    Raises:
        InputError: something was trained that the format does not have.
    """
    if method.invertible:
        raise InputError("invertible adapters are not written in AdapterHub's format here: train without --invertible")
    ends = {"adapters.down.": f"adapters.{name}.adapter_down.0.", "adapters.up.": f"adapters.{name}.adapter_up."}
    found = {}
    for ours, tensor in tensors.items():
        end = next((end for end in ends if f".{end}" in ours), None)
        if end is None:
            raise InputError(
                f"{ours} was trained too, which AdapterHub's format does not have: train with --train_layernorm False"
            )
        found[ours.replace(end, ends[end])] = tensor
    size, width = method.bottleneck_size, hidden_size(model)
    # It computes the size as width // factor, in floating point: half a unit more makes every size exact.
    factor = width // size if width % size == 0 else width / (size + 0.5)
    used = method.with_adapters(model)
    left_out = [number for number in range(len(layers(model))) if number not in used]
    settings = _PLACEMENTS[method.placement] | {"reduction_factor": factor, "leave_out": left_out}
    settings["non_linearity"] = method.function().__name__
    settings["scaling"] = method.scaling if method.placement == "parallel" else 1.0
    return settings, found
