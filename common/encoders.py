"""Hugging Face encoders: where in one is which place. The only file with those modules' names."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from common.errors import InputError
from common.places import BeforeResidual, Branch, Input, Place
from common.prepending import Front, KeysValues, Level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
"""Model types that this file knows its way around in."""

Linear = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
"""The linear layers of a Transformer layer; `intermediate` and `output` are the two of the feed-forward part."""

# Where each of them lies in a layer: BERT, RoBERTa and ELECTRA first, DistilBERT second.
_PATHS: dict[str, tuple[str, ...]] = {
    "query": ("attention.self.query", "attention.q_lin"),
    "key": ("attention.self.key", "attention.k_lin"),
    "value": ("attention.self.value", "attention.v_lin"),
    "attention_output": ("attention.output.dense", "attention.out_lin"),
    "intermediate": ("intermediate.dense", "ffn.lin1"),
    "output": ("output.dense", "ffn.lin2"),
}
_LAYERS = ("encoder.layer", "transformer.layer")
_SELF_ATTENTION = ("attention.self", "attention")

Sublayer = Literal["attention", "feedforward"]
"""The two parts of a Transformer layer, each with a residual sum and a LayerNorm behind it."""

_LAYER_NORMS: dict[Sublayer, tuple[str, ...]] = {
    "attention": ("attention.output.LayerNorm", "sa_layer_norm"),
    "feedforward": ("output.LayerNorm", "output_layer_norm"),
}


def _first(root: nn.Module, paths: tuple[str, ...]) -> str:
    """The first of these paths that leads to a module below root. Raises InputError if none does."""
    for path in paths:
        try:
            root.get_submodule(path)
            return path
        except AttributeError:
            continue
    raise InputError(f"{type(root).__name__} has none of {', '.join(paths)}: known are encoders of {', '.join(KINDS)}")


def encoder(model: nn.Module) -> Any:
    """The pretrained part of a model with a head."""
    return model.base_model


def layers(model: nn.Module) -> Any:
    """The Transformer layers of an encoder, lowest first: an nn.ModuleList."""
    return encoder(model).get_submodule(_first(encoder(model), _LAYERS))


def stack(model: nn.Module) -> nn.Module:
    """The module that runs the layers one after the other, between the embeddings and the pooler or head."""
    return encoder(model).get_submodule(_first(encoder(model), _LAYERS).rpartition(".")[0])


# Places: each takes any number of branches, see common/places.py.


def linear(layer: nn.Module, name: Linear) -> Place:
    """A linear layer."""
    return Place(layer.get_submodule(_first(layer, _PATHS[name])))


def sublayer(layer: nn.Module, name: Sublayer) -> Place:
    """A sublayer's output behind its dropout, before the residual sum. x is the sublayer's input, (..., hidden).

    The host is the LayerNorm behind the sum.
    """
    norm = layer_norm(layer, name)
    path = {"attention": "attention.output", "feedforward": "output"}[name]
    try:
        return BeforeResidual(norm, layer.get_submodule(path))
    except AttributeError:  # DistilBERT sums in the layer, so the output of the module is the sublayer's
        return Place(norm, layer.get_submodule({"attention": "attention", "feedforward": "ffn"}[name]))


def hidden(layer: nn.Module) -> Place:
    """The output of a layer, (..., hidden); x is its input. A packed top layer gives [CLS] of each sequence alone."""
    return Place(layer)


def embeddings(model: nn.Module) -> Place:
    """What the lowest layer is given, (..., hidden) or ELECTRA's smaller size; x is the token ids."""
    return Place(embedding_module(model))


def before_head(model: nn.Module) -> Place:
    """What the head is given; x is the same."""
    others = (child for child in model.children() if child is not encoder(model))
    return Input(next(child for child in others if list(child.parameters())))


def keys_values(layer: nn.Module) -> Place:
    """Keys and values before those of the text in a layer: branches return both, each (heads, length, size)."""
    return KeysValues(self_attention(layer))


def front(model: nn.Module, n: int, level: Level = "words") -> Place:
    """n tokens in front of every sequence: branches return their vectors, (n, features of a word embedding)."""
    return Front(n, level, encoder(model), stack(model), embedding_module(model), first_position(model))


# Modules that methods unfreeze or measure.


def embedding_module(model: nn.Module) -> Any:
    """The module that makes the lowest layer's input of token ids: words, positions, types, LayerNorm, dropout."""
    return encoder(model).embeddings


def word_embeddings(model: nn.Module) -> Any:
    """The table of the vocabulary, an nn.Embedding."""
    return embedding_module(model).word_embeddings


def embedding_projection(model: nn.Module) -> nn.Linear | None:
    """ELECTRA's map from its smaller embeddings to the hidden size; None where there is none."""
    return getattr(encoder(model), "embeddings_project", None)


def layer_norm(layer: nn.Module, sublayer: Sublayer) -> Any:
    """The LayerNorm behind a sublayer's residual sum."""
    return layer.get_submodule(_first(layer, _LAYER_NORMS[sublayer]))


def embedding_layer_norm(model: nn.Module) -> Any:
    """The LayerNorm below the lowest layer."""
    return embedding_module(model).LayerNorm


def self_attention(layer: nn.Module) -> Any:
    """The module that makes queries, keys and values and lets them attend."""
    return layer.get_submodule(_first(layer, _SELF_ATTENTION))


def keys_and_values(attention: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer's self-attention makes of hidden states, (..., hidden): its keys and its values, each the same."""
    names = ("key", "value") if hasattr(attention, "key") else ("k_lin", "v_lin")
    key, value = (getattr(attention, name)(hidden_states) for name in names)
    return key, value


def n_heads(model: Any) -> int:
    """Attention heads of a layer."""
    return encoder(model).config.num_attention_heads


def hidden_size(model: Any) -> int:
    """Features of a token between the layers."""
    return encoder(model).config.hidden_size


def pooler(model: nn.Module) -> nn.Module | None:
    """The pretrained dense + tanh over [CLS] that BERT has inside its encoder; None for the other kinds."""
    return getattr(encoder(model), "pooler", None)


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the task adds to the encoder: every parameter outside it (RoBERTa's dense and DistilBERT's too)."""
    modules = [encoder(model), *(module for module in model.modules() if isinstance(module, Branch))]
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in inside}


def layer_norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of every LayerNorm of the encoder (bert-base: 25 of them), under the names they have."""
    inside = {id(p) for m in encoder(model).modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in inside}


def n_outputs(model: Any) -> int:
    """Outputs of a model's head."""
    return model.config.num_labels


def longest_input(model: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that fit into the encoder, special ones included."""
    return min(tokenizer.model_max_length, n_positions(model))


def vocabulary_size(model: nn.Module) -> int:
    """Token ids that the encoder has embeddings for."""
    return word_embeddings(model).num_embeddings


def n_positions(model: Any) -> int:
    """Positions that the encoder has embeddings for."""
    return encoder(model).config.max_position_embeddings - first_position(model)


def first_position(model: nn.Module) -> int:
    """Position of a sequence's first token: 0, but RoBERTa counts from behind its padding index."""
    padding = embedding_module(model).position_embeddings.padding_idx
    return 0 if padding is None else padding + 1
