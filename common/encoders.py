"""Hugging Face encoders: find the modules in one that methods work on. The only file with those modules' names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from common.errors import DoesNotFit, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
"""Model types that this file knows its way around in."""

Linear = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
"""The linear maps of a Transformer layer; `intermediate` and `output` are the two of the feed-forward part."""

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


def embeddings(model: nn.Module) -> Any:
    """The module that makes the lowest layer's input of token ids: words, positions, types, LayerNorm, dropout."""
    return encoder(model).embeddings


def replace_words(model: nn.Module, wrap: Callable[[nn.Embedding], nn.Module]) -> Any:
    """Put wrap(table of the vocabulary) in its place, under the same name; the new module."""
    embeddings(model).word_embeddings = wrap(embeddings(model).word_embeddings)
    return embeddings(model).word_embeddings


def store_embeddings(model: nn.Module, store: nn.Module) -> None:
    """Put a module that gives hidden states for token ids in the place of everything below the lowest layer."""
    encoder(model).embeddings = store
    if embedding_projection(model) is not None:
        encoder(model).embeddings_project = nn.Identity()


def embedding_projection(model: nn.Module) -> nn.Linear | None:
    """ELECTRA's map from its smaller embeddings to the hidden size; None where there is none."""
    return getattr(encoder(model), "embeddings_project", None)


def linear(layer: nn.Module, name: Linear) -> Any:
    """A linear map of a layer."""
    return layer.get_submodule(_first(layer, _PATHS[name]))


def layer_norm(layer: nn.Module, sublayer: Sublayer) -> Any:
    """The LayerNorm behind a sublayer's residual sum."""
    return layer.get_submodule(_first(layer, _LAYER_NORMS[sublayer]))


def embedding_layer_norm(model: nn.Module) -> Any:
    """The LayerNorm below the lowest layer."""
    return embeddings(model).LayerNorm


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


class _Adapted(nn.Module):
    """The end of a BERT sublayer with an adapter: LayerNorm(adapter(dropout(dense(x))) + input), names unchanged."""

    def __init__(self, block: Any, adapter: nn.Module):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = block.dense, block.dropout, block.LayerNorm
        self.adapter = adapter

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """hidden_states: (..., dense's in), input_tensor: (..., hidden) -> (..., hidden)"""
        output = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(self.adapter(output, input_tensor, self.LayerNorm) + input_tensor)


def adapt(layer: nn.Module, sublayer: Sublayer, adapter: nn.Module) -> None:
    """Put adapter(output, input, layer_norm) in the place of a sublayer's output, before the residual sum.

    Args:
        adapter: called with the sublayer's output behind its dropout and its input, both (..., hidden), and with the
            LayerNorm behind the sum; its parameters get names that begin with the sublayer's.
    """
    norm = layer_norm(layer, sublayer)
    path = {"attention": "attention.output", "feedforward": "output"}[sublayer]
    try:
        block = layer.get_submodule(path)
    except AttributeError:  # DistilBERT: the sum is the layer's business, so the sublayer's output can be changed
        part = layer.get_submodule({"attention": "attention", "feedforward": "ffn"}[sublayer])
        part.adapter = adapter

        def change(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):  # attention also hands on its weights
                return module.adapter(output[0], args[0], norm), *output[1:]
            return module.adapter(output, args[0], norm)

        part.register_forward_hook(change)
        return
    parent, _, child = path.rpartition(".")
    setattr(layer.get_submodule(parent), child, _Adapted(block, adapter))


def begin_with(model: nn.Module, ids: torch.Tensor, positions: bool) -> None:
    """Put these token ids in front of every sequence that the encoder is given; what it hands on is the text's part.

    So [CLS] stays what head and pooler take, though it stands behind the new tokens.

    Args:
        ids: (n,), ids that the embeddings know.
        positions: whether the new tokens take the first positions, or the text keeps its own from the first on.
    """
    n, first = len(ids), first_position(model)

    def lengthen(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        values = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        text = values.get("input_ids")
        if text is None:
            raise TypeError("tokens can be put in front of input_ids only, not of inputs_embeds")
        new = {"input_ids": ids, "token_type_ids": ids.new_zeros(n), "attention_mask": ids.new_ones(n)}
        given = values.get("position_ids")
        if positions:
            new["position_ids"] = first + torch.arange(n)
            if given is not None:
                values["position_ids"] = given + n
        else:  # the text's have to be said, since the encoder would count from the new tokens on
            new["position_ids"] = torch.full((n,), first)
            if given is None:
                values["position_ids"] = (first + torch.arange(text.shape[1], device=text.device)).expand_as(text)
        moved = places = None
        if "packing" in values:
            values["packing"], moved, places = values["packing"].lengthened(n)
        for name, tokens in new.items():
            if values.get(name) is not None:
                values[name] = _inserted(values[name], tokens.to(text.device), moved, places)
        return (), values

    def drop(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if "packing" not in kwargs:  # else the packing knows where the text begins
            output.last_hidden_state = output.last_hidden_state[:, n:]
        return output

    encoder(model).register_forward_pre_hook(lengthen, with_kwargs=True)
    stack(model).register_forward_hook(drop, with_kwargs=True)


def _inserted(
    text: torch.Tensor, new: torch.Tensor, moved: torch.Tensor | None, places: torch.Tensor | None
) -> torch.Tensor:
    """text: (batch, length), new: (n,) -> (batch, n + length); or, packed, at the places that Packing tells."""
    if moved is None or places is None:
        return torch.cat((new.to(text.dtype).expand(len(text), -1), text), dim=1)
    row = text.new_empty(1, len(moved) + places.numel())
    row[0, moved] = text[0]
    row[0, places] = new.to(text.dtype)
    return row


def replace(layer: nn.Module, name: Linear, wrap: Callable[[nn.Linear], nn.Module]) -> None:
    """Put wrap(linear) in the place of a layer's linear map, under the same name.

    Raises:
        DoesNotFit: another method has replaced that map already; its parameters would be lost.
    """
    parent, _, child = _first(layer, _PATHS[name]).rpartition(".")
    owner = layer.get_submodule(parent)
    found = getattr(owner, child)
    if type(found) is not nn.Linear:
        raise DoesNotFit(f"the {name} map is a {type(found).__name__} already: one method can replace it, not two")
    setattr(owner, child, wrap(found))


def pooler(model: nn.Module) -> nn.Module | None:
    """The pretrained dense + tanh over [CLS] that BERT has inside its encoder; None for the other kinds."""
    return getattr(encoder(model), "pooler", None)


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the task adds to the encoder: every parameter outside it (RoBERTa's dense and DistilBERT's too)."""
    inside = {id(parameter) for parameter in encoder(model).parameters()}
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
    return embeddings(model).word_embeddings.num_embeddings


def n_positions(model: Any) -> int:
    """Positions that the encoder has embeddings for."""
    return encoder(model).config.max_position_embeddings - first_position(model)


def first_position(model: nn.Module) -> int:
    """Position of a sequence's first token: 0, but RoBERTa counts from behind its padding index."""
    padding = embeddings(model).position_embeddings.padding_idx
    return 0 if padding is None else padding + 1
