"""Models with parameters sharded over the processes (FSDP 2): shard, unshard and reshard tensors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.errors import check

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def shard_by_layer(
    accelerator: "Accelerator", model: Any, layers: Iterable[nn.Module], uses_all: bool
) -> Iterator[None]:
    """Make `accelerator.prepare` shard a model of any architecture layer by layer; no effect without FSDP.

    Args:
        layers: those of the model, of one class or, in Marian, of two.
        uses_all: whether every forward pass uses all trained parameters.

    Raises:
        InputError: FSDP 1, or a method whose processes may need different parameters in one step.
    """
    if accelerator.distributed_type.value != "FSDP":
        yield
        return
    plugin = accelerator.state.fsdp_plugin
    check(
        {
            "launched with FSDP 1, which flattens parameters: set fsdp_version to 2": plugin.fsdp_version != 2,
            "FSDP and a method that skips parameters in some steps: launch without FSDP": not uses_all,
        }
    )
    plugin.transformer_cls_names_to_wrap = list(dict.fromkeys(type(layer).__name__ for layer in layers))
    if not model.config.is_encoder_decoder:
        yield
        return
    # Encoder, decoder and output layer have one matrix of words, which must be in one unit. accelerate knows of two of
    # them and puts these into a unit of their own; what it does not know of is in that of the whole model.
    words = {"get_input_embeddings": lambda: None, "get_output_embeddings": lambda: None}
    vars(model).update(words)
    try:
        yield
    finally:
        for name in words:
            vars(model).pop(name, None)


def unshard(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded. Every process must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unshard_all(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: unshard(tensor) for name, tensor in tensors.items()}


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor as `like` is sharded, or return it if `like` is not. Every process must call it."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements)


def reshard(model: nn.Module) -> None:
    """Reshard all parameters: FSDP leaves some unsharded after a forward pass without a backward pass."""
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "reshard"):
            module.reshard()
