"""Texts -> token ids -> batches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from common.data import Examples
from common.errors import InputError
from common.runtime import files, locks
from common.runtime.device import send

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Layout(Protocol):
    """How the examples of a batch are packed, see common/fast/packing.py."""

    def pack(self, columns: dict[str, torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor) -> dict[str, Any]:
        """The keyword arguments of a forward pass, including `packing`."""


@dataclass(frozen=True)
class Tokens:
    """A split as token ids without padding, ready to be cut into batches."""

    columns: dict[str, torch.Tensor]
    """input_ids and, if the encoder has them, token_type_ids: all examples concatenated, (tokens,) of int32."""
    lengths: torch.Tensor
    """(examples,), number of tokens; (examples, choices) if an example is several sequences, one after the other."""
    labels: torch.Tensor
    """(examples,), int64 classes or float32 scores; (0,) if they are not published."""
    padding: dict[str, int]
    """Values of the columns at padded positions."""
    layout: Layout | None
    """How batches are packed; None = they are padded."""

    def __len__(self) -> int:
        return len(self.lengths)

    def n_targets(self, indices: torch.Tensor) -> int:
        """Number of targets of some examples, here one for each. The loss of a step is the mean over its targets."""
        return len(indices)

    def of_epoch(self, seed: int, epoch: int) -> Tokens:
        """The same examples as they are in one epoch, which changes them where a task says so."""
        return self

    @cached_property
    def starts(self) -> torch.Tensor:
        """Index of the first token of each sequence in the columns, in the shape of `lengths`."""
        return (self.lengths.flatten().cumsum(0) - self.lengths.flatten()).view_as(self.lengths)

    @property
    def n_sequences(self) -> int:
        """Sequences of an example: 1, or its choices."""
        return self.lengths.shape[1:].numel()

    def with_layout(self, layout: Layout | None) -> Tokens:
        """The same examples with another layout of batches."""
        return replace(self, layout=layout)

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """Keyword arguments of a forward pass on some examples, packed or padded, and labels, (batch,) or (0,).

        The sequences of an example follow each other, so that the batch of the encoder is (batch * sequences).
        """
        starts, lengths = self.starts[indices].flatten(), self.lengths[indices].flatten()
        if self.layout is not None:
            inputs = self.layout.pack(self.columns, starts, lengths)
        else:
            positions = torch.arange(int(lengths.max()))
            real = positions < lengths[:, None]  # (batch * sequences, longest)
            sources = torch.where(real, starts[:, None] + positions, 0)
            inputs = {n: column[sources].where(real, self.padding[n]).long() for n, column in self.columns.items()}
            inputs["attention_mask"] = real.long()
        packing = inputs.pop("packing", None)
        tensors = inputs | {"labels": self.labels[indices] if len(self.labels) else self.labels}
        if packing is not None:
            tensors |= packing.tensors()
        sent: dict[str, Any] = send(tensors, device)
        labels = sent.pop("labels")
        if packing is not None:
            sent["packing"] = packing.moved_to({name: sent.pop(name) for name in packing.tensors()})
        return sent, labels


def tokenize(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path | None = None
) -> Tokens:
    """Tokenize each example to at most `max_length` tokens, cutting the longer text of a pair first.

    cache: folder for the token ids, in a file named by a digest of texts, tokenizer and length; None = no cache.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    if not tokenizer.is_fast:  # nothing says what one in Python does, so that its token ids are not kept
        cache = None
    path = cache and cache / f"{_digest(examples, tokenizer, max_length)}.safetensors"
    stored: dict[str, torch.Tensor] = {}
    if path and path.is_file():
        with contextlib.suppress(InputError):  # damaged: computed again
            stored, _ = files.read_tensors(path)
    # The vocabulary is read for stored token ids alone: that takes longer than to tokenize a few examples.
    if not (stored and _fits(stored, names, len(examples), max_length, max(tokenizer.get_vocab().values()))):
        encoded = tokenizer(*examples.texts, truncation="longest_first", max_length=max_length, padding=False)
        stored = {n: torch.tensor(list(chain.from_iterable(encoded[n])), dtype=torch.int32) for n in names}
        stored["lengths"] = torch.tensor([len(ids) for ids in encoded["input_ids"]], dtype=torch.int32)
        if path:
            with locks.lock_file(path):
                files.write_tensors(path, stored)
    # Masked, so that any id will do for a tokenizer without a padding token.
    padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    labels = torch.tensor(examples.labels or [])
    return Tokens({n: stored[n] for n in names}, stored["lengths"].long(), labels, padding, layout=None)


def _fits(stored: dict[str, torch.Tensor], names: list[str], n_examples: int, max_length: int, last_id: int) -> bool:
    """Whether cached token ids can be those of these examples."""
    if stored.keys() != {*names, "lengths"} or any(t.dtype != torch.int32 or t.ndim != 1 for t in stored.values()):
        return False
    lengths = stored["lengths"].long()
    if len(lengths) != n_examples or bool(((lengths < 1) | (lengths > max_length)).any()):
        return False
    highest = {name: 1 if name == "token_type_ids" else last_id for name in names}
    return all(
        len(stored[name]) == lengths.sum() and bool(((stored[name] >= 0) & (stored[name] <= highest[name])).all())
        for name in names
    )


def _digest(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """A digest of everything that the token ids and their columns depend on."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["truncation"], rules["padding"]  # left from the last call; each call of ours sets them again
    sides = tokenizer.truncation_side, tokenizer.padding_side, tokenizer.split_special_tokens
    versions = version("transformers"), version("tokenizers")
    facts = [rules, versions, type(tokenizer).__name__, tokenizer.model_input_names, sides, max_length]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for column in examples.texts:
        digest.update(json.dumps(column).encode())
    return digest.hexdigest()[:32]


def shuffled(n_examples: int, seed: int, epoch: int) -> torch.Tensor:
    """Order of the training examples in one epoch. It depends on seed and epoch only: the same for every method."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_examples, generator=generator)


def padding_share(tokens: Tokens, batch_size: int, seed: int, is_cut: bool = False) -> float:
    """Share of padding in the first epoch's batches if each is padded to its longest sequence, in [0, 1).

    is_cut: whether they are cut by `by_length`.
    """
    batches = shuffled(len(tokens), seed, epoch=0).split(batch_size)
    if is_cut:
        batches = [part for each in batches for part in by_length(each, tokens.lengths, batch_size) if len(part)]
    padded = sum(int(part.max()) * part.numel() for part in (tokens.lengths[each] for each in batches))
    return 1 - int(tokens.lengths.sum()) / padded


def shares(indices: torch.Tensor, batch_size: int, rank: int, n_processes: int) -> list[torch.Tensor]:
    """This process's examples of one optimizer step, in micro-batches of at most `batch_size`.

    All processes get the same number of micro-batches. Their sizes may differ by one, and a micro-batch may be empty.
    """
    n_batches = math.ceil(len(indices) / (batch_size * n_processes))
    return list(indices[rank::n_processes].tensor_split(n_batches))


LENGTHS, FEWEST = 4, 8
"""At most so many parts of `by_length`, of at least so many examples."""


def by_length(indices: torch.Tensor, lengths: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut a micro-batch into parts of about one length, so that little of each is padding.

    As many for every micro-batch of a run, since all processes need the same number of forward passes.

    Args:
        lengths: of all examples, (examples,).
        batch_size: the most examples that a micro-batch has.
    """
    n_parts = min(LENGTHS, max(1, batch_size // FEWEST))
    return list(indices[lengths[indices].argsort(stable=True)].tensor_split(n_parts))
