"""Models whose parameters are sharded over the processes (FSDP 2): whole tensors out of them, and into them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.errors import check

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard_by_layer(accelerator: "Accelerator", layer: nn.Module, uses_all: bool) -> None:
    """Have `accelerator.prepare` shard a model layer by layer, whatever its kind; nothing where it shards none.

    Args:
        layer: one of those of the encoder.
        uses_all: whether every forward pass uses all trained parameters.

    Raises:
        InputError: FSDP 1, or processes that would not all need the same parameters.
    """
    if accelerator.distributed_type.value != "FSDP":
        return
    plugin = accelerator.state.fsdp_plugin
    check(
        {
            "launched with FSDP 1, which flattens parameters: set fsdp_version to 2": plugin.fsdp_version != 2,
            "FSDP and a method that leaves out parameters in some steps: launch without FSDP": not uses_all,
        }
    )
    plugin.transformer_cls_names_to_wrap = [type(layer).__name__]


def unshard(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded; every process has to call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unshard_all(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`whole` of each."""
    return {name: unshard(tensor) for name, tensor in tensors.items()}


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, held as one of its shape is: sharded or not. Every process calls it."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    return distribute_tensor(value.to(like.device), held.device_mesh, held.placements)


def reshard(model: nn.Module) -> None:
    """Put parameters back into shards: FSDP keeps some of them whole after a forward pass without a backward one."""
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "reshard"):
            module.reshard()
