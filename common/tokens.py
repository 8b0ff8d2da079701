"""Rows of text -> token ids -> batches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from common.data import Examples
from common.errors import InputError
from common.runtime import files
from common.runtime.device import send

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Layout(Protocol):
    """How packed batches are laid out, see common/fast/packing.py."""

    def pack(self, columns: dict[str, torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor) -> dict[str, Any]:
        """The keywords of a forward pass, `packing` among them."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A split as token ids, unpadded, ready to be cut into batches."""

    columns: dict[str, torch.Tensor]
    """input_ids and, where the encoder has them, token_type_ids: the rows end to end, each (tokens,) of int32."""
    lengths: torch.Tensor
    """(rows,), tokens of each row."""
    labels: torch.Tensor
    """(rows,), int64 classes or float32 scores; (0,) where they are not published."""
    padding: dict[str, int]
    """What stands behind the end of a row in a padded batch."""
    layout: Layout | None
    """How batches are packed; None = they are padded."""

    def __len__(self) -> int:
        return len(self.lengths)

    def n_targets(self, rows: torch.Tensor) -> int:
        """Targets of some rows, over which the loss of a step is a mean: one of each."""
        return len(rows)

    @cached_property
    def starts(self) -> torch.Tensor:
        """(rows,), the place of each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    def with_layout(self, layout: Layout | None) -> Tokens:
        """The same rows, for batches that are packed in this way, or padded."""
        return replace(self, layout=layout)

    def batch(self, rows: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """These rows, (batch,), laid end to end, or padded to the longest of them.

        Returns:
            The keywords of a forward pass, and the labels, (batch,), or (0,) where there are none.
        """
        starts, lengths = self.starts[rows], self.lengths[rows]
        if self.layout is not None:
            inputs = self.layout.pack(self.columns, starts, lengths)
        else:
            steps = torch.arange(int(lengths.max()))
            there = steps < lengths[:, None]  # (batch, longest)
            places = torch.where(there, starts[:, None] + steps, 0)
            inputs = {n: column[places].where(there, self.padding[n]).long() for n, column in self.columns.items()}
            inputs["attention_mask"] = there.long()
        packed = inputs.pop("packing", None)
        tensors = inputs | {"labels": self.labels[rows] if len(self.labels) else self.labels}
        if packed is not None:
            tensors |= packed.tensors()
        sent: dict[str, Any] = send(tensors, device)
        labels = sent.pop("labels")
        if packed is not None:
            sent["packing"] = packed.moved_to({name: sent.pop(name) for name in packed.tensors()})
        return sent, labels


def tokenize(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path | None = None,
) -> Tokens:
    """Token ids of each row, at most `max_length` of them; of a pair the longer text is cut first. Batches are padded.

    Args:
        cache: folder in which the ids are kept, under a digest of texts, tokenizer and length; None = nowhere.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    path = cache and cache / f"{_digest(examples, tokenizer, max_length)}.safetensors"
    stored: dict[str, torch.Tensor] = {}
    if path and path.is_file():
        with contextlib.suppress(InputError):  # damaged: made again
            stored, _ = files.read_tensors(path)
    if not stored:
        encoded = tokenizer(*examples.texts, truncation="longest_first", max_length=max_length, padding=False)
        lengths = torch.tensor([len(row) for row in encoded["input_ids"]], dtype=torch.int32)
        stored = {n: torch.tensor(list(chain.from_iterable(encoded[n])), dtype=torch.int32) for n in names}
        stored["lengths"] = lengths
        if path:
            files.write_tensors(path, stored)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    labels = torch.tensor(examples.labels or [])
    return Tokens({n: stored[n] for n in names}, stored["lengths"].long(), labels, padding, layout=None)


def _digest(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Of everything that the token ids depend on."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["truncation"], rules["padding"]  # what the last call left behind; ours are given with each call
    digest = hashlib.sha256(f"{json.dumps(rules)} {max_length}".encode())
    for column in examples.texts:
        digest.update(json.dumps(column).encode())
    return digest.hexdigest()[:32]


def shuffled(n_rows: int, seed: int, epoch: int) -> torch.Tensor:
    """Order of the training rows in one epoch: a function of seed and epoch alone, so the same for every method."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_rows, generator=generator)


def shares(rows: torch.Tensor, batch_size: int, process: int, n_processes: int) -> list[torch.Tensor]:
    """This process's part of one optimizer step, in micro-batches of at most `batch_size` rows.

    Every process gets the same number of micro-batches, possibly with one row more or less in each, or none at all.
    """
    mine = rows[process::n_processes]
    n_batches = math.ceil(len(rows) / (batch_size * n_processes))
    return list(mine.tensor_split(n_batches))
