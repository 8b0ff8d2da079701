"""Prompt tuning in peft's format, where the head reads the first vector of the prompt in place of [CLS]."""

from typing import Any

from common.encoders import encoder, layers, n_heads, pooler, stack, word_embeddings
from common.errors import InputError
from common.exchange import IN_FRONT, Peft
from common.methods import Tensors
from prompt.method import PromptTuning

REMEDY = """
def drop_prompt(module, args, output):  # so that the head reads [CLS] in place of the first vector of the prompt
    output.last_hidden_state = output.last_hidden_state[:, {length}:]
    return output

model.get_base_model().base_model{read}.register_forward_hook(drop_prompt)
"""


def to_peft(method: PromptTuning, model: Any, tensors: Tensors) -> Peft:
    """Raises InputError for vectors that enter after the embedding layer."""
    if method.level != "words":
        raise InputError(f"the prompt enters at the level {method.level}, and peft's enters as words")
    (vectors,) = tensors.values()
    settings = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": method.prompt_length,
        "token_dim": word_embeddings(model).embedding_dim,
        "num_attention_heads": n_heads(model),
        "num_layers": len(layers(model)),
        "num_transformer_submodules": 1,
    }
    # A pooler inside the encoder reads what the layers give; heads outside read what the encoder gives.
    read = stack(model) if pooler(model) is not None else encoder(model)
    name = next(f".{name}" * (name != "") for name, module in encoder(model).named_modules() if module is read)
    difference = "peft's head reads the first vector of the prompt, and ours [CLS], which gives other logits"
    return Peft(settings, {IN_FRONT: vectors}, difference, REMEDY.format(length=method.prompt_length, read=name))
