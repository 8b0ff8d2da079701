"""Places before the text: keys and values in the attention of a layer, and tokens at the input of the encoder."""

import copy
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common.places import Branch, Place

PREPENDED = "prepended"
"""Name of `_attend` in transformers' registry of attention functions."""

Level = Literal["words", "embeddings"]
"""Where vectors enter: as word embeddings, with positions, types and LayerNorm, or after the embedding layer."""


class KeysValues(Place):
    """Keys and values before those of the text, in one layer. Branches return both, each (heads, length, size), or with
    the batch before them if each sequence has its own.

    The inputs of a branch are the hidden states, and the keys and values of the text. The text keeps its positions, its
    masks and its maximal length, since the added keys have no queries. In T5 they have no relative position either.
    """

    def add(self, branch: Branch) -> None:
        self.register(branch)
        prepended(self.owner).branches.append(branch)


def prepended(attention: Any) -> "_Prepended":
    """What is prepended to the keys and values of an attention module, which is set up for it in the first call."""
    from transformers import AttentionInterface

    if not hasattr(attention, PREPENDED):
        AttentionInterface.register(PREPENDED, _attend)
        attention.prepended = _Prepended(attention.config)
        # This module gets its own config, so that the encoder still makes the masks of its attention function.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = PREPENDED
        attention.register_forward_pre_hook(attention.prepended.keep)
    return attention.prepended


class _Prepended:
    """The branches of a layer's attention, and the original config with the encoder's attention function."""

    def __init__(self, config: Any):
        self.config, self.branches, self.x = config, list[Branch](), torch.empty(0)

    def keep(self, _attention: nn.Module, args: Any) -> None:
        self.x = args[0]

    def keys_values(self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Those of all branches, concatenated, in the type of `key`; see KeysValues for their shapes."""
        parts = [branch(self.x, (key, value), attention) for branch in self.branches]
        keys, values = (_joined(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
        return keys.to(key.dtype), values.to(key.dtype)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """parts: (heads, length, size) or (batch, heads, length, size) -> concatenated along their lengths"""
    shape = max((part.shape[:-3] for part in parts), key=len)  # (batch,) if one part has it
    return torch.cat([part.expand(*shape, *part.shape[-3:]) for part in parts], dim=-2)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> Any:
    """Attention of the encoder with the added keys and values. query, key, value: (batch, heads, length, size)

    The mask may be None, bool (True = visible) or float (0 = visible), (batch, 1, length or 1, length).
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    prefix = module.prepended.keys_values(module, key, value)
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.prepended.config._attn_implementation, eager)
    if getattr(attend, "takes_prefix", False):
        return attend(module, query, key, value, attention_mask, prefix=prefix, **settings)
    key, value = (
        torch.cat((added.expand(len(text), -1, -1, -1), text), dim=2)
        for added, text in zip(prefix, (key, value), strict=True)
    )
    if attention_mask is None and getattr(module, "is_causal", False):
        attention_mask = _causal_mask(query, key.shape[2] - prefix[0].shape[-2])
    if attention_mask is not None:
        visible: Any = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (prefix[0].shape[-2], 0), value=visible)
    if settings.get("position_bias") is not None:
        settings["position_bias"] = F.pad(settings["position_bias"], (prefix[0].shape[-2], 0))
    return attend(module, query, key, value, attention_mask, **settings)


def _causal_mask(query: torch.Tensor, n_keys: int) -> torch.Tensor:
    """Query i, counted from the end, sees the keys up to the i-th from the end: (1, 1, queries, keys) of bool."""
    n = query.shape[2]
    return torch.ones(1, 1, n, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n)


class Front(Place):
    """n tokens before every sequence. Branches return their vectors, (n, features).

    The encoder returns only the outputs of the text, so that head and pooler still use [CLS]; a decoder attends to
    those of the new tokens too, as in Lester et al. (2021). The new tokens have ids after the vocabulary. The word
    embeddings look up id 0 for them, and the vectors then replace the result.
    """

    def __init__(
        self,
        n: int,
        level: Level,
        encoder: Any,
        stack: nn.Module,
        embeddings: Any,
        words: Any,
        first_position: int,
        decoder: nn.Module | None = None,
    ):
        """
        Args:
            stack: runs the layers.
            embeddings: computes the input of the lowest layer.
            words: the embeddings of the vocabulary.
            first_position: of a sequence.
            decoder: attends to the outputs of the stack, those of the new tokens too; None = there is no decoder.
        """
        super().__init__(embeddings)
        self.decoder = decoder
        self.n, self.level, self.encoder, self.stack = n, level, encoder, stack
        self.words, self.first_position = words, first_position
        owners = [getattr(hook, "__self__", None) for hook in self.words._forward_pre_hooks.values()]
        n_others = sum(owner.n for owner in owners if isinstance(owner, _Vectors))
        self.first_id = self.words.num_embeddings + n_others

    def add(self, branch: Branch) -> None:
        self.register(branch)
        insert = _Insert(self.n, self.first_id, self.level, self.first_position)
        self.encoder.register_forward_pre_hook(insert, with_kwargs=True)
        if self.decoder is None:  # before other hooks, which see the text alone
            self.stack.register_forward_hook(insert.remove, with_kwargs=True, prepend=True)
        else:
            self.decoder.register_forward_pre_hook(insert.show, with_kwargs=True)
        self.vectors = _Vectors(self.n, self.first_id, branch, self.owner)
        self.words.register_forward_pre_hook(self.vectors.hide)
        hidden = self.words if self.level == "words" else self.owner
        hidden.register_forward_hook(self.vectors.write)


class _Insert:
    """Hooks that add the tokens to the inputs of the encoder and remove them from the output of its stack."""

    def __init__(self, n: int, first_id: int, level: Level, first_position: int):
        self.n, self.first_id, self.level, self.first_position = n, first_id, level, first_position
        self.is_cached = False

    def __call__(self, _encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        values = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        text = values.get("input_ids")
        if text is None:
            raise TypeError("tokens can be added to input_ids only, not to inputs_embeds")
        n, steps = self.n, torch.arange(self.n)
        cache = values.get("past_key_values")
        self.is_cached = cache is not None and cache.get_seq_length() > 0
        if self.is_cached:  # a later step of generation: their keys and values are there
            return (), values | self._behind(values)
        new = {"input_ids": self.first_id + steps, "token_type_ids": 0 * steps, "attention_mask": 0 * steps + 1}
        positions = values.get("position_ids")
        if self.level == "words":
            new["position_ids"] = self.first_position + steps
            if positions is not None:  # RoBERTa's padding tokens keep theirs, which is below the first one
                values["position_ids"] = torch.where(positions < self.first_position, positions, positions + n)
        else:  # give the positions of the text, since the encoder would count from the new tokens
            new["position_ids"] = 0 * steps + self.first_position
            if values.get("attention_mask") is None:  # else transformers takes positions that begin again for a packing
                values["attention_mask"] = torch.ones_like(text)
            if positions is None:
                is_counted = text != self.first_position - 1  # all but RoBERTa's padding tokens
                values["position_ids"] = self.first_position - 1 + is_counted.cumsum(1) * is_counted
        moved = inserted = None
        if "packing" in values:
            values["packing"], moved, inserted = values["packing"].lengthened(n)
        for name, tokens in new.items():
            if values.get(name) is not None:
                values[name] = _insert_tokens(values[name], tokens.to(text.device), moved, inserted)
        return (), values

    def _behind(self, values: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Mask and positions of text behind tokens that are in the cache."""
        mask, positions = values.get("attention_mask"), values.get("position_ids")
        found = {} if mask is None else {"attention_mask": F.pad(mask, (self.n, 0), value=1)}
        if positions is not None and self.level == "words":
            found["position_ids"] = positions + self.n
        return found

    def show(self, _decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Let a decoder attend to the tokens too."""
        mask = kwargs.get("encoder_attention_mask")
        return args, kwargs if mask is None else kwargs | {"encoder_attention_mask": F.pad(mask, (self.n, 0), value=1)}

    def remove(self, _stack: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Keep only the outputs of the text."""
        if "packing" not in kwargs and not self.is_cached:  # a packing has the index of each [CLS]
            output.last_hidden_state = output.last_hidden_state[:, self.n :]
        return output


def with_front(encoder: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a forward pass with the tokens that `Front` puts before each sequence of an encoder."""
    for hook in encoder._forward_pre_hooks.values():
        if isinstance(hook, _Insert):
            _, inputs = hook(encoder, (), inputs)
    return inputs


def _insert_tokens(
    text: torch.Tensor, new: torch.Tensor, moved: torch.Tensor | None, inserted: torch.Tensor | None
) -> torch.Tensor:
    """text: (batch, length), new: (n,) -> (batch, n + length); if packed, at the indices given by the packing."""
    if moved is None or inserted is None:
        return torch.cat((new.to(text.dtype).expand(len(text), -1), text), dim=1)
    packed = text.new_empty(1, len(moved) + inserted.numel())
    packed[0, moved] = text[0]
    packed[0, inserted] = new.to(text.dtype)
    return packed


class _Vectors:
    """Two hooks: the word embeddings get id 0 for the new tokens, and the branch's vectors replace the result."""

    def __init__(self, n: int, first_id: int, branch: Branch, host: nn.Module):
        self.n, self.first_id, self.branch, self.host = n, first_id, branch, host
        self.ids = self.is_new = torch.empty(0)

    def hide(self, _words: nn.Module, args: Any) -> Any:
        (self.ids,) = args
        self.is_new = (self.ids >= self.first_id) & (self.ids < self.first_id + self.n)  # (batch, length)
        return (self.ids.masked_fill(self.is_new, 0),)

    def write(self, _module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        indices = (self.ids - self.first_id).masked_fill(~self.is_new, 0)
        vectors = F.embedding(indices, self.branch(self.ids, out, self.host).to(out.dtype))
        return torch.where(self.is_new[..., None], vectors, out)
