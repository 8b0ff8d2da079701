"""The places and modules of Hugging Face encoders. No other file knows the names of these modules."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from common.errors import DoesNotFit, InputError
from common.places import BeforeResidual, Branch, Input, Place, Rows, Weights, rows_of
from common.prepending import Front, KeysValues, Level
from common.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = (
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "albert", "deberta-v2",
    "modernbert",
)  # fmt: skip
"""Supported model types of encoders."""
DECODERS = ("gpt2",)
"""Supported model types of causal language models, in which a token sees those before it and itself."""
ENCODER_DECODERS = ("marian", "t5")
"""Supported model types with an encoder for a source, and a decoder that attends to what it gives (cross-attention)."""
GENERATORS = DECODERS + ENCODER_DECODERS

Linear = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
"""The linear layers of a Transformer layer; `intermediate` and `output` are the two of the feed-forward part."""
Sublayer = Literal["attention", "cross_attention", "feedforward"]
"""The parts of a Transformer layer, see `sublayers`. A residual sum and a LayerNorm follow each; those of ModernBERT,
GPT-2 and T5 begin with it."""

# Paths of modules in a layer or an encoder: first those of BERT, RoBERTa and ELECTRA, then those of DistilBERT, then
# those of MPNet, ALBERT, DeBERTa, ModernBERT, GPT-2, Marian and T5 where they are others. A T5 layer is a list of two
# sublayers, or of three with cross-attention.
_LINEAR: dict[str, tuple[str, ...]] = {
    "query": (
        "attention.self.query", "attention.q_lin", "attention.attn.q", "attention.query", "attention.self.query_proj",
        "attn.Wqkv", "attn.c_attn", "self_attn.q_proj", "layer.0.SelfAttention.q",
    ),
    "key": (
        "attention.self.key", "attention.k_lin", "attention.attn.k", "attention.key", "attention.self.key_proj",
        "attn.Wqkv", "attn.c_attn", "self_attn.k_proj", "layer.0.SelfAttention.k",
    ),
    "value": (
        "attention.self.value", "attention.v_lin", "attention.attn.v", "attention.value", "attention.self.value_proj",
        "attn.Wqkv", "attn.c_attn", "self_attn.v_proj", "layer.0.SelfAttention.v",
    ),
    "attention_output": (
        "attention.output.dense", "attention.out_lin", "attention.attn.o", "attention.dense", "attn.Wo", "attn.c_proj",
        "self_attn.out_proj", "layer.0.SelfAttention.o",
    ),
    "intermediate": (
        "intermediate.dense", "ffn.lin1", "ffn", "mlp.Wi", "mlp.c_fc", "fc1", "layer.1.DenseReluDense.wi",
        "layer.1.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wi_0",
    ),
    "output": (
        "output.dense", "ffn.lin2", "ffn_output", "mlp.Wo", "mlp.c_proj", "fc2", "layer.1.DenseReluDense.wo",
        "layer.2.DenseReluDense.wo",
    ),
}  # fmt: skip
_SECOND: dict[str, tuple[str, ...]] = {
    "query": ("encoder_attn.q_proj", "layer.1.EncDecAttention.q"),
    "key": ("encoder_attn.k_proj", "layer.1.EncDecAttention.k"),
    "value": ("encoder_attn.v_proj", "layer.1.EncDecAttention.v"),
    "attention_output": ("encoder_attn.out_proj", "layer.1.EncDecAttention.o"),
    "intermediate": ("layer.1.DenseReluDense.wi_1", "layer.2.DenseReluDense.wi_1"),
    "output": (),
}
"""A second linear layer of this name: that of a cross-attention, or of a gated feed-forward part (T5 1.1)."""
_LAYER_NORMS: dict[Sublayer, tuple[str, ...]] = {
    "attention": (
        "attention.output.LayerNorm", "sa_layer_norm", "attention.LayerNorm", "attn_norm", "ln_1",
        "self_attn_layer_norm", "layer.0.layer_norm",
    ),
    "cross_attention": ("encoder_attn_layer_norm", "layer.1.layer_norm"),
    "feedforward": (
        "output.LayerNorm", "output_layer_norm", "full_layer_layer_norm", "mlp_norm", "ln_2", "final_layer_norm",
        "layer.2.layer_norm", "layer.1.layer_norm",
    ),
}  # fmt: skip
_FUSED = ("query", "key", "value")  # the rows of attn.Wqkv and attn.c_attn, in this order
_LAYERS = ("encoder.layer", "transformer.layer", "encoder.albert_layer_groups", "layers", "h", "block")
_SELF_ATTENTION = ("attention.self", "attention.attn", "attention", "attn", "self_attn", "layer.0.SelfAttention")
_CROSS_ATTENTION = ("encoder_attn", "layer.1.EncDecAttention")


def _found(root: nn.Module, paths: tuple[str, ...]) -> str | None:
    """The first of these paths that exists below root; None if none does."""
    for path in paths:
        with contextlib.suppress(AttributeError):
            root.get_submodule(path)
            return path
    return None


def _first(root: nn.Module, paths: tuple[str, ...]) -> str:
    """The same. Raises InputError if none does."""
    path = _found(root, paths)
    if path is None:
        known = ", ".join(KINDS + GENERATORS)
        raise InputError(f"{type(root).__name__} has none of {', '.join(paths)}: known are encoders of {known}")
    return path


def encoder(model: nn.Module) -> Any:
    """The pretrained part of a model with a head; a T5 without its own head is all of it."""
    return model.base_model


def is_causal(model: nn.Module) -> bool:
    """Whether a token sees only those before it and itself."""
    return encoder(model).config.model_type in DECODERS


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a decoder attends to what an encoder gives for a source."""
    return encoder(model).config.model_type in ENCODER_DECODERS


def generates(model: nn.Module) -> bool:
    """Whether a token is predicted from those before it, in the whole model or in its decoder."""
    return encoder(model).config.model_type in GENERATORS


def attention_function(kind: str) -> str:
    """The attention function of transformers that encoders of a kind are loaded with."""
    return "eager" if kind in ("mpnet", "deberta-v2") else "sdpa"


def take_attention_functions(model: nn.Module) -> None:
    """Let a model as it was loaded call other attention functions too, as most do, and have all places."""
    kind = encoder(model).config.model_type
    if kind == "mpnet":
        from common import mpnet

        mpnet.take_attention_functions(model)
    elif kind == "deberta-v2":
        from common import deberta

        deberta.take_attention_functions(model)
    elif kind == "albert":
        from common import albert

        albert.take_places(model)
    elif kind == "gpt2":
        from common import gpt2

        gpt2.take_places(model)


def layers(model: nn.Module) -> Any:
    """The Transformer layers of an encoder, lowest first, and then those of a decoder: an nn.ModuleList.

    ALBERT runs a layer several times in a forward pass. It is one layer here, as its weights are.
    """
    if is_encoder_decoder(model):
        both = (encoder(model).encoder, encoder(model).decoder)
        return nn.ModuleList(layer for each in both for layer in each.get_submodule(_first(each, _LAYERS)))
    found: Any = encoder(model).get_submodule(_first(encoder(model), _LAYERS))
    if encoder(model).config.model_type != "albert":
        return found
    return nn.ModuleList(layer for group in found for layer in group.albert_layers)


def runs_of_top_layer(model: nn.Module) -> int:
    """How often the top layer runs in a forward pass: once, or in ALBERT as often as its weights are used."""
    config = encoder(model).config
    n, groups = config.num_hidden_layers, getattr(config, "num_hidden_groups", None)
    return 1 if groups is None else [int(i / (n / groups)) for i in range(n)].count(groups - 1)


def sharing(model: nn.Module) -> str:
    """What a message about the number of layers has to add where they run several times; empty for most encoders."""
    config = encoder(model).config
    if config.model_type != "albert":
        return ""
    return f" (which share their weights in {config.num_hidden_layers * config.inner_group_num} runs)"


def stack(model: nn.Module) -> nn.Module:
    """The module that runs all layers, between embeddings and head: in ModernBERT and GPT-2 the whole encoder.

    Of an encoder-decoder it is the decoder.
    """
    if is_encoder_decoder(model):
        return encoder(model).decoder  # type: ignore[no-any-return]
    return encoder(model).get_submodule(_first(encoder(model), _LAYERS).rpartition(".")[0])


# Places, see common/places.py. Each takes any number of branches.


def linear(layer: nn.Module, name: Linear) -> Place:
    """The output of a linear layer, not that of a cross-attention."""
    return _linear(Place, layer, name, _first(layer, _LINEAR[name]))


def linears(layer: nn.Module, name: Linear) -> list[Place]:
    """The outputs of all linear layers of this name: one, or two where cross-attention or a gate has its own."""
    return [_linear(Place, layer, name, path) for path in _paths(layer, name)]


def linear_inputs(layer: nn.Module, name: Linear) -> list[Place]:
    """The inputs of all linear layers of this name; x is the same."""
    return [_linear(Input, layer, name, path) for path in _paths(layer, name)]


def _paths(layer: nn.Module, name: Linear) -> list[str]:
    second = _found(layer, _SECOND[name])
    return [_first(layer, _LINEAR[name]), *([] if second is None else [second])]


def _linear(kind: type[Place], layer: nn.Module, name: Linear, path: str) -> Place:
    """A place at a linear layer, or at the rows of a fused one."""
    found: Any = layer.get_submodule(path)
    place = kind(rows_of(found, _FUSED, name) if path.endswith(("Wqkv", "c_attn")) else found)
    place.of_positions = name in ("query", "key") and hasattr(self_attention(layer), "share_att_key")
    return place


def sublayers(layer: nn.Module) -> tuple[Sublayer, ...]:
    """The sublayers of a layer, in the order in which they run."""
    names: tuple[Sublayer, ...] = get_args(Sublayer)
    return tuple(name for name in names if name != "cross_attention" or _found(layer, _CROSS_ATTENTION))


def sublayer(layer: nn.Module, name: Sublayer) -> Place:
    """A sublayer's output after its dropout and before the residual sum, (..., hidden); x is the other term of the sum.

    The host is the LayerNorm after the sum, or, if `norm_first`, the one that x goes through into the sublayer. In
    Marian, where that dropout is no module, the output is the one before it.
    """
    norm, parts = layer_norm(layer, name), cast(Any, layer)
    if hasattr(layer, "layer"):  # T5: a list of sublayers
        part = parts.layer[sublayers(layer).index(name)]
        return BeforeResidual(norm, part, norm, part.dropout)
    if hasattr(layer, "self_attn"):
        if name == "feedforward":
            return BeforeResidual(norm, parts.fc2, parts.fc1, parts.fc2)
        return Place(norm, parts.self_attn if name == "attention" else parts.encoder_attn)
    if norm_first(layer):
        module = layer.get_submodule({"attention": "attn", "feedforward": "mlp"}[name])
        return BeforeResidual(norm, module, norm, module)
    home = _first(layer, _LAYER_NORMS[name]).rpartition(".")[0]
    if hasattr(layer, "ffn_output"):  # ALBERT's feed-forward sublayer is no module, its attention one the whole of it
        if name == "attention":
            return BeforeResidual(norm, parts.attention, parts.attention, parts.attention.output_dropout)
        return BeforeResidual(norm, layer, parts.ffn, parts.dropout)
    if not home:  # DistilBERT computes the sum in the layer, so the module's output is the sublayer's
        return Place(norm, layer.get_submodule({"attention": "attention", "feedforward": "ffn"}[name]))
    owner: Any = layer.get_submodule(home)
    whole = home == "attention"  # MPNet's is the whole sublayer, the others only end it
    return BeforeResidual(norm, owner, owner, owner.dropout, argument=0 if whole else 1)


def norm_first(layer: nn.Module) -> bool:
    """Whether a sublayer's LayerNorm is at its input and not after the residual sum, as in ModernBERT, GPT-2 and T5."""
    return any(hasattr(layer, name) for name in ("mlp_norm", "ln_2", "layer"))


def hidden(layer: nn.Module) -> Place:
    """The output of a layer, (..., hidden); x is its input. In packed batches the top layer returns only [CLS]."""
    return Place(layer)


def embeddings(model: nn.Module) -> Place:
    """The input of the lowest layer, (..., hidden) or ELECTRA's and ALBERT's smaller size.

    x is the token ids; in GPT-2, where a dropout alone stands between the embeddings and that layer, its input. In an
    encoder-decoder it is the output of the word embeddings of the encoder.
    """
    return Place(embedding_module(model))


def before_head(model: nn.Module) -> Place:
    """The input of the head; x is the same."""
    others = (child for child in model.children() if child is not encoder(model))
    return Input(next(child for child in others if list(child.parameters())))


def before_vocabulary(model: nn.Module) -> Place | None:
    """The input of the tied output layer, as wide as `embeddings`; x is the same. None: the head has no such layer."""
    layer = vocabulary_layer(model)
    return None if layer is None else Input(layer)


def keys_values(layer: nn.Module, name: Sublayer = "attention") -> Place:
    """Keys and values before those of the text in an attention: branches return both, each (heads, length, size)."""
    is_cross = name == "cross_attention"
    return KeysValues(layer.get_submodule(_first(layer, _CROSS_ATTENTION)) if is_cross else self_attention(layer))


def front(model: nn.Module, n: int, level: Level = "words") -> Place:
    """n tokens before every sequence: branches return their vectors, (n, features of a word embedding).

    Of an encoder-decoder, before every source, and the decoder attends to them too. Raises DoesNotFit if it has no such
    level.
    """
    if is_encoder_decoder(model):
        if level == "embeddings":
            raise DoesNotFit(f"level is {level}, which {encoder(model).config.model_type} does not have: choose words")
        words, both = word_embeddings(model), encoder(model)
        return Front(n, level, both.encoder, both.encoder, words, words, 0, both.decoder)
    at = encoder(model), stack(model), embedding_module(model), word_embeddings(model)
    return Front(n, level, *at, first_position(model))


def sequences(model: nn.Module) -> Sequences:
    """Means over the tokens of each sequence, for branches inside the layers."""
    runs = stack(model)
    return Sequences(layers(model)[0] if runs is encoder(model) else runs)  # where the layers' masks are known


def weights(model: nn.Module) -> Weights:
    """All parameters of the encoder but those of branches and of a trained pooler, always in the same order."""
    others = [*(module for module in model.modules() if isinstance(module, Branch)), *_trained_pooler(model)]
    inside = {part for module in others for part in module.modules()}
    return Weights(encoder(model), [module for module in encoder(model).modules() if module not in inside])


# Modules that methods unfreeze or measure.


def embedding_module(model: nn.Module) -> Any:
    """The module that computes the lowest layer's input: words, positions, types, LayerNorm, dropout.

    In GPT-2 it is the dropout, since words and positions are added in no module of their own, and in encoder-decoders
    the words of the encoder.
    """
    if is_encoder_decoder(model):
        return word_embeddings(model)
    return encoder(model).drop if is_causal(model) else encoder(model).embeddings


def word_embeddings(model: nn.Module) -> Any:
    """The embeddings of the vocabulary, an nn.Embedding; of an encoder-decoder, the one that the encoder calls."""
    paths = ("embeddings.word_embeddings", "embeddings.tok_embeddings", "wte", "encoder.embed_tokens")
    return encoder(model).get_submodule(_first(encoder(model), paths))


def vocabulary_layer(model: Any) -> nn.Linear | None:
    """The output layer of a language model, whose matrix is that of the word embeddings; None for other heads."""
    return model.get_output_embeddings()


def embedding_projection(model: nn.Module) -> nn.Linear | None:
    """The linear layer from smaller embeddings to the hidden size (ELECTRA, ALBERT); None for other encoders."""
    ours = getattr(encoder(model), "embeddings_project", None)
    return ours if ours is not None else getattr(stack(model), "embedding_hidden_mapping_in", None)


def whole_bias(module: Any) -> nn.Parameter | None:
    """The bias of a module, or that of the whole layer if it is rows of a fused one; None if it has none."""
    return getattr(module.whole[0] if isinstance(module, Rows) else module, "bias", None)


def layer_norm(layer: nn.Module, sublayer: Sublayer) -> Any:
    """The LayerNorm of a sublayer, see `norm_first`; ModernBERT's lowest attention has an nn.Identity instead."""
    return layer.get_submodule(_first(layer, _LAYER_NORMS[sublayer]))


def embedding_layer_norms(model: nn.Module) -> nn.ModuleList:
    """The LayerNorms below the lowest layer: that of the embeddings, and in DeBERTa that of its relative positions.

    GPT-2, Marian and T5 have none.
    """
    if generates(model):
        return nn.ModuleList()
    found, relative = embedding_module(model), getattr(stack(model), "LayerNorm", None)
    norm = found.get_submodule(_first(found, ("LayerNorm", "norm")))
    return nn.ModuleList([norm, *([] if relative is None else [relative])])


def final_layer_norm(model: nn.Module) -> nn.Module | None:
    """The LayerNorm after the highest layer of ModernBERT, GPT-2 and T5; None for other encoders."""
    path = _found(encoder(model), ("final_norm", "ln_f", "decoder.final_layer_norm"))
    return None if path is None else encoder(model).get_submodule(path)  # type: ignore[no-any-return]


def relative_positions(model: nn.Module) -> list[nn.Module]:
    """The modules outside the layers that compute relative positions, of no text alone (MPNet, DeBERTa)."""
    names = ("relative_attention_bias", "rel_embeddings", "LayerNorm")
    return [stack(model).get_submodule(name) for name in names if hasattr(stack(model), name)]


def outer_layer_norms(model: nn.Module) -> nn.ModuleList:
    """The LayerNorms below and above the layers; T5's encoder has one above its own."""
    above = (getattr(getattr(encoder(model), "encoder", None), "final_layer_norm", None), final_layer_norm(model))
    return nn.ModuleList([*embedding_layer_norms(model), *(norm for norm in above if norm is not None)])


def self_attention(layer: nn.Module) -> Any:
    """The module that computes queries, keys, values and attention."""
    return layer.get_submodule(_first(layer, _SELF_ATTENTION))


def keys_and_values(layer: Any, hidden_states: torch.Tensor, rotation: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that a layer computes from its input, each (1, tokens, hidden).

    rotation: cosines and sines by token, each (1, tokens, size); None = keys are not rotated.
    """
    attention = self_attention(layer)
    if rotation is not None:
        from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

        normed = layer.attn_norm.forward(hidden_states)  # without its hooks, which keep what a branch is given
        _, key, value = attention.Wqkv(normed).chunk(3, dim=-1)
        key = key.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        _, key = apply_rotary_pos_emb(key[:, :1], key, *rotation)
        return key.transpose(1, 2).flatten(2), value
    pairs = (("key", "value"), ("k_lin", "v_lin"), ("k", "v"), ("key_proj", "value_proj"))
    names = next(pair for pair in pairs if hasattr(attention, pair[0]))
    key, value = (getattr(attention, name)(hidden_states) for name in names)
    return key, value


def n_heads(model: Any) -> int:
    """Attention heads of a layer."""
    return encoder(model).config.num_attention_heads


def hidden_size(model: Any) -> int:
    return encoder(model).config.hidden_size


def head_size(model: Any) -> int:
    """Features of the query, key and value of one attention head."""
    config = encoder(model).config
    return getattr(config, "d_kv", config.hidden_size // config.num_attention_heads)


def pooler(model: nn.Module) -> nn.Module | None:
    """The pretrained dense + tanh on [CLS] inside BERT's encoder, in ALBERT the dense layer alone.

    None for other encoders, and where it is not used.
    """
    found = getattr(encoder(model), "pooler", None)
    return found if found is not None and list(found.parameters()) else None


def _trained_pooler(model: nn.Module) -> list[nn.Module]:
    """The pooler, if it is trained with the head."""
    pool = pooler(model)
    return [pool] if pool is not None and getattr(model, "pooling", None) == "trained_pooler" else []


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters outside the encoder and outside branches, including the dense layer of RoBERTa and DistilBERT.

    A pooler that is trained with the head belongs to it.
    """
    modules = [encoder(model), *(module for module in model.modules() if isinstance(module, Branch))]
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    inside -= {id(parameter) for pool in _trained_pooler(model) for parameter in pool.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in inside}


def layer_norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of all LayerNorms of the encoder (25 LayerNorms in bert-base), by their names in the model."""
    modules = encoder(model).modules()
    norms = (m for m in modules if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("LayerNorm"))  # T5's own
    inside = {id(parameter) for norm in norms for parameter in norm.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in inside}


def n_outputs(model: Any) -> int:
    """Outputs of the head."""
    layer = vocabulary_layer(model)
    return model.config.num_labels if layer is None else layer.out_features


def longest_input(model: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The maximal number of tokens of an input, including special tokens."""
    return min(tokenizer.model_max_length, n_positions(model))


def shortest_input(tokenizer: "PreTrainedTokenizerBase", n_texts: int) -> int:
    """The number of tokens of an input of `n_texts` texts, 1 or 2, with one token of each, including special tokens.

    A tokenizer ignores a maximal length below its special tokens, and cuts nothing.
    """
    return tokenizer.num_special_tokens_to_add(pair=n_texts == 2) + n_texts


def vocabulary_size(model: nn.Module) -> int:
    """Number of token ids with an embedding."""
    return word_embeddings(model).num_embeddings


def n_token_types(model: nn.Module) -> int | None:
    """Number of token types with an embedding; None if the encoder has none (DistilBERT, DeBERTa)."""
    types = getattr(embedding_module(model), "token_type_embeddings", None)
    return None if types is None else types.num_embeddings


def n_positions(model: Any) -> int:
    """Number of positions that a token can have, but for those that adapters below take; T5 has no limit."""
    below = getattr(model, "positions_below", 0)  # of `loading.add_below`
    if encoder(model).config.model_type == "t5":
        return sys.maxsize
    return encoder(model).config.max_position_embeddings - first_position(model) - below


def first_position(model: nn.Module) -> int:
    """Position of a sequence's first token: 0, but in RoBERTa the one after the padding index."""
    positions = getattr(embedding_module(model), "position_embeddings", None)  # not in ModernBERT, None in DeBERTa
    padding = None if positions is None else positions.padding_idx
    return 0 if padding is None else padding + 1
