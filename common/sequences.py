"""The tokens of each sequence and their means, in padded and in packed batches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Sequences:
    """The sequences of the current batch of a model. They are known in the layers, not in the embeddings."""

    def __init__(self, stack: nn.Module):
        """stack: the module that runs all layers, or the lowest layer."""
        self.packing: Any = None
        self.is_token = torch.empty(0)
        stack.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, _stack: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep the packing, or the mask: None, (batch, length) or (batch, 1, length or 1, length), bool or additive."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self.packing, mask = kwargs.get("packing"), kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is None:
            mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        if mask.ndim == 4:  # whether a token sees itself: the first one may not see all others
            seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
            mask = seen[:, 0] if seen.shape[1] == 1 else seen.diagonal(dim1=1, dim2=2)
        self.is_token = mask.bool()

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """x: of all tokens, (batch, length, features), or (1, tokens, features) if packed -> (batch, features)

        Padding is left out. The sequences of a packed batch are in packed order.
        """
        return self._mean(x, self.is_token) if self.packing is None else self._packed_mean(x, self.packing.padded)

    def mean_of_text(self, x: torch.Tensor) -> torch.Tensor:
        """x: of the text, (batch, length, features), or of all tokens if packed -> (batch, features), in batch order

        Tokens that a method has put before the text are left out.
        """
        if self.packing is None:
            return self._mean(x, self.is_token[:, -x.shape[1] :])
        return self._packed_mean(x, self.packing.padded[:, self.packing.n_front :])[self.packing.ranks]

    def at(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Some tokens. x: as in `mean_of_text`; places: (tokens, 2), example in the batch and position in its text.

        Returns: (tokens, features)
        """
        examples, positions = places.T
        if self.packing is None:
            return x[examples, positions]
        return x[0, self.packing.padded[self.packing.ranks[examples], self.packing.n_front + positions]]

    def _packed_mean(self, x: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        return self._mean(x[0, padded.clamp(min=0)], padded >= 0)

    def _mean(self, x: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
        return (x * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True)

    def spread(self, means: torch.Tensor) -> torch.Tensor:
        """means: (batch, features) -> (batch, 1, features), or (1, tokens, features) if packed, 0 at its padding"""
        if self.packing is None:
            return means[:, None]
        lengths, n = (self.packing.padded >= 0).sum(1), sum(self.packing.lengths)
        tokens = means.repeat_interleave(lengths, dim=0, output_size=n)
        return F.pad(tokens, (0, 0, 0, self.packing.n_tokens - n))[None]
