"""Places in front of the text: keys and values in the attention of a layer, and tokens at the encoder's input."""

import copy
import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common.places import Branch, Place

PREPENDED = "prepended"
"""Name under which transformers knows `_attend`."""

Level = Literal["words", "embeddings"]
"""Where new tokens join: as word embeddings, which get positions, type and LayerNorm; or behind all that."""


class KeysValues(Place):
    """Keys and values before those of the text, in one layer. Branches return them, each (heads, length, size).

    A branch is given the hidden states and the keys and values of the text. Positions, masks of the text and the number
    of tokens that fit are untouched, since no query stands at the added places.
    """

    def add(self, branch: Branch) -> None:
        from transformers import AttentionInterface

        self.register(branch)
        attention = self.owner
        if not hasattr(attention, PREPENDED):
            AttentionInterface.register(PREPENDED, _attend)
            attention.prepended = _Prepended(attention.config)
            # A config of its own: this module's attention changes, and the encoder goes on making masks of its kind.
            attention.config = copy.copy(attention.config)
            attention.config._attn_implementation = PREPENDED
            attention.register_forward_pre_hook(attention.prepended.keep)
        attention.prepended.branches.append(branch)


class _Prepended:
    """The branches of a layer's attention, and the config that names the attention function of its encoder."""

    def __init__(self, config: Any):
        self.config, self.branches, self.x = config, list[Branch](), torch.empty(0)

    def keep(self, _attention: nn.Module, args: Any) -> None:
        self.x = args[0]

    def keys_values(self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Those of all branches, one behind the other, each (heads, length, size), in the type of the text's."""
        parts = [branch(self.x, (key, value), attention) for branch in self.branches]
        keys, values = (torch.cat(each, dim=1) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
        return keys.to(key.dtype), values.to(key.dtype)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> Any:
    """The encoder's attention function over more keys. query, key, value: (batch, heads, length, size)

    The mask may be None, bool (True = seen) or float (0 = seen), (batch, 1, length or 1, length).
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    prefix = module.prepended.keys_values(module, key, value)
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.prepended.config._attn_implementation, eager)
    if getattr(attend, "takes_prefix", False):
        return attend(module, query, key, value, attention_mask, prefix=prefix, **settings)
    key, value = (
        torch.cat((first.expand(len(text), -1, -1, -1), text), dim=2)
        for first, text in zip(prefix, (key, value), strict=True)
    )
    if attention_mask is not None:
        seen: Any = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (prefix[0].shape[1], 0), value=seen)
    return attend(module, query, key, value, attention_mask, **settings)


class Front(Place):
    """n tokens in front of every sequence. Branches return their vectors, (n, features).

    The encoder hands on the text's part alone, so [CLS] stays what head and pooler take. The new tokens have ids behind
    the vocabulary, which the embeddings see as id 0 until the vectors are written over it.
    """

    def __init__(self, n: int, level: Level, encoder: Any, stack: nn.Module, embeddings: Any, first_position: int):
        """
        Args:
            n: new tokens.
            level: where they join.
            encoder, stack, embeddings: the pretrained model, what runs its layers, what makes the lowest one's input.
            first_position: of a sequence.
        """
        super().__init__(embeddings)
        self.n, self.level, self.encoder, self.stack = n, level, encoder, stack
        self.words, self.first_position = embeddings.word_embeddings, first_position
        there = [getattr(hook, "__self__", None) for hook in self.words._forward_pre_hooks.values()]
        others = sum(vectors.n for vectors in there if isinstance(vectors, _Vectors))
        self.first_id = self.words.num_embeddings + others

    def add(self, branch: Branch) -> None:
        self.register(branch)
        insert = _Insert(self.n, self.first_id, self.level, self.first_position)
        self.encoder.register_forward_pre_hook(insert, with_kwargs=True)
        self.stack.register_forward_hook(insert.remove, with_kwargs=True)
        vectors = _Vectors(self.n, self.first_id, branch, self.owner)
        self.words.register_forward_pre_hook(vectors.hide)
        hidden = self.words if self.level == "words" else self.owner
        hidden.register_forward_hook(vectors.write)


class _Insert:
    """Hooks of the encoder, which lengthen its inputs, and of its stack, which cut its output."""

    def __init__(self, n: int, first_id: int, level: Level, first_position: int):
        self.n, self.first_id, self.level, self.first_position = n, first_id, level, first_position

    def __call__(self, _encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        values = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        text = values.get("input_ids")
        if text is None:
            raise TypeError("tokens can be put in front of input_ids only, not of inputs_embeds")
        n, steps = self.n, torch.arange(self.n)
        new = {"input_ids": self.first_id + steps, "token_type_ids": 0 * steps, "attention_mask": 0 * steps + 1}
        positions = values.get("position_ids")
        if self.level == "words":
            new["position_ids"] = self.first_position + steps
            if positions is not None:
                values["position_ids"] = positions + n
        else:  # the text's have to be given, since the encoder would count from the new tokens on
            new["position_ids"] = 0 * steps + self.first_position
            if positions is None:
                counted = self.first_position + torch.arange(text.shape[1], device=text.device)
                values["position_ids"] = counted.expand_as(text)
        moved = places = None
        if "packing" in values:
            values["packing"], moved, places = values["packing"].lengthened(n)
        for name, tokens in new.items():
            if values.get(name) is not None:
                values[name] = _inserted(values[name], tokens.to(text.device), moved, places)
        return (), values

    def remove(self, _stack: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Keep the text's part of the output."""
        if "packing" not in kwargs:  # else the packing knows where the text begins
            output.last_hidden_state = output.last_hidden_state[:, self.n :]
        return output


def _inserted(
    text: torch.Tensor, new: torch.Tensor, moved: torch.Tensor | None, places: torch.Tensor | None
) -> torch.Tensor:
    """text: (batch, length), new: (n,) -> (batch, n + length); or, packed, at the places that the packing gave."""
    if moved is None or places is None:
        return torch.cat((new.to(text.dtype).expand(len(text), -1), text), dim=1)
    row = text.new_empty(1, len(moved) + places.numel())
    row[0, moved] = text[0]
    row[0, places] = new.to(text.dtype)
    return row


class _Vectors:
    """Two hooks: word embeddings see id 0 for the new tokens; a branch's vectors are written over what comes of it."""

    def __init__(self, n: int, first_id: int, branch: Branch, host: nn.Module):
        self.n, self.first_id, self.branch, self.host = n, first_id, branch, host
        self.ids = self.own = torch.empty(0)

    def hide(self, _words: nn.Module, args: Any) -> Any:
        (self.ids,) = args
        self.own = (self.ids >= self.first_id) & (self.ids < self.first_id + self.n)  # (batch, length)
        return (self.ids.masked_fill(self.own, 0),)

    def write(self, _module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        places = (self.ids - self.first_id).masked_fill(~self.own, 0)
        vectors = F.embedding(places, self.branch(self.ids, out, self.host).to(out.dtype))
        return torch.where(self.own[..., None], vectors, out)
