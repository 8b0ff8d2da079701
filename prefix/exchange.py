"""Prefix tuning in peft's format, whose prefix shifts the positions of the text."""

import inspect
from typing import Any

from common.encoders import encoder, first_position, hidden_size, layers, n_heads
from common.errors import InputError
from common.exchange import IN_FRONT, Peft
from common.methods import Tensors
from prefix.method import PrefixTuning

REMEDY = """
def keep_positions(encoder, args, inputs):  # peft counts the text's positions from the end of the prefix
    n_tokens, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
    return args, inputs | {{"position_ids": {first} + torch.arange(n_tokens, device=device)[None]}}

model.get_base_model().base_model.register_forward_pre_hook(keep_positions, with_kwargs=True)
"""


def to_peft(method: PrefixTuning, model: Any, tensors: Tensors) -> Peft:
    """Raises InputError for a prefix in some layers, and for encoders to which peft cannot give one."""
    if method.layers != "all":
        raise InputError(f"the prefix is in the layers {method.layers}, and peft's is in all of them")
    if "past_key_values" not in inspect.signature(encoder(model).forward).parameters:
        raise InputError(f"peft cannot give a prefix to {encoder(model).config.model_type}, which takes no keys")
    (table,) = tensors.values()
    settings = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": method.prefix_length,
        "token_dim": hidden_size(model),
        "encoder_hidden_size": hidden_size(model),
        "num_attention_heads": n_heads(model),
        "num_layers": len(layers(model)),
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    difference = (
        f"peft shifts the text's positions by {method.prefix_length}, which changes its logits and leaves fewer for it"
    )
    return Peft(settings, {IN_FRONT: table}, difference, REMEDY.format(first=first_position(model)))
