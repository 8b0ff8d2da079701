"""The interface of a task, and the data of a run: examples, tokens and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from common.checkpoints import files_digest, load_tokenizer
from common.data import Examples
from common.errors import InputError
from common.options import Pooling, TuneOptions
from common.tokens import Layout, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(Protocol):
    """Everything that the training loop needs from a task. There is one class for each kind of task."""

    name: str
    metrics: tuple[str, ...]
    """Names of scores; the score of a run is their mean on the first validation split."""
    validations: tuple[str, ...]
    """Names of the validation splits."""
    n_texts: int
    """Texts of a sequence: 1, or 2 for a pair."""
    facts: dict[str, Any]
    """What result and adapter record of the task besides its name; `labels`, if there are any, names the classes."""

    def load(self, checkpoint: str, pooling: Pooling | None) -> nn.Module:
        """A pretrained model with a new head. Everything outside the encoder is trained."""

    def meta(self, checkpoint: str, pooling: Pooling | None) -> nn.Module:
        """The same model on the meta device: shapes without values, at no cost."""

    def read(self, split: str, source: str) -> Examples:
        """The examples of a split."""

    def is_there(self, split: str, source: str) -> bool:
        """Whether the source has a split."""

    def encode(self, examples: Examples, tokenizer: Any, max_length: int, cache: Path | None) -> Tokens:
        """Tokenize examples, each to at most `max_length` tokens."""

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """The sum over the targets of a batch. The loop divides it by the number of targets of the whole step."""

    def score(
        self, model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """Scores by name, and the outputs of the model."""

    def floor(self, train: Tokens, validation: Tokens) -> dict[str, float]:
        """The scores of a constant answer; empty if the task has none."""

    def finish(
        self,
        best_model: Callable[[], nn.Module],
        splits: Mapping[str, Any],
        batch_size: int,
        accelerator: Any,
        folder: Path,
    ) -> dict[str, Any]:
        """Further entries of the result, which are known at the end alone, and files in the folder of the run.

        best_model: gives the model of the best epoch. splits: those of validation.
        """


HOLDOUT = "holdout"
"""Name of the split of held-out training examples that select the best epoch instead of the validation splits."""
HOLDOUT_ONLY = "holdout_only"
"""Value of `select` with which that split is the only one to score."""
TOKENS = "tokens"
"""Folder in the output_dir for the token ids of all runs."""
DECISIVE = (
    "checkpoint", "task_name", "data", "text_fields", "label_field", "metric",
    "select", "max_train_samples", "max_eval_samples", "output_dir", "mask_share", "whole_words", "line_by_line",
    "source_field", "target_field", "source_prefix", "generate", "num_beams", "max_new_tokens", "length_penalty",
    "no_repeat_ngram_size",
)  # fmt: skip
"""The options that the data of a run depends on."""


class TaskData:
    """Examples, tokens and tokenizer of a task, read when they are first needed and reused by later runs."""

    def __init__(self, task: Task, options: TuneOptions):
        self.task, self.options = task, options
        self._tokens: tuple[int, dict[str, Tokens]] | None = None

    def serves(self, options: TuneOptions) -> bool:
        """Whether this is the data of a run with these options."""
        return all(getattr(self.options, name, None) == getattr(options, name, None) for name in DECISIVE)

    def read(self) -> None:
        """Read the examples now, since most bad input is there. Raises InputError like `rows`."""
        _ = self.rows

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """Split -> examples: "train", all validation splits that exist, and HOLDOUT with select=holdout.

        With select=holdout_only there are no validation splits, and HOLDOUT is the same for any max_train_samples.

        Raises:
            InputError: they cannot be read or used, or those to train on, or held out, have one label only.
        """
        options, task = self.options, self.task
        train = task.read("train", options.data)
        alone = options.select == HOLDOUT_ONLY
        rows = {"train": train.sample(None if alone else options.max_train_samples)}
        for split in () if alone else task.validations:
            if split == task.validations[0] or task.is_there(split, options.data):
                examples = task.read(split, options.data)
                if not set(zip(*examples.texts, strict=True)).difference(zip(*train.texts, strict=True)):
                    raise InputError(
                        f"{task.name}: all {len(examples):,} examples of the split {split!r} of {options.data} are "
                        "training examples too, so that its score would say nothing: give other ones"
                    )
                rows[split] = examples.sample(options.max_eval_samples)
        if options.select != "dev":
            rows["train"], rows[HOLDOUT] = rows["train"].hold_out()
        if alone:
            rows["train"] = rows["train"].sample(options.max_train_samples)
            rows[HOLDOUT] = rows[HOLDOUT].sample(options.max_eval_samples)
        for split, examples in rows.items():
            if examples.labels is not None and (n_labels := len(set(examples.labels))) < 2:
                self._report(split, len(examples), n_labels)
        return rows

    def _report(self, split: str, n: int, n_labels: int) -> None:
        """Raise InputError if nothing can be learned or selected; scores on the development set are only warned of."""
        name = self.task.name
        if split in ("train", HOLDOUT):
            what, do = ("the training set", "") if split == "train" else ("the held-out part", ", or select on dev")
            raise InputError(
                f"{name}: {what} has {n} examples and {n_labels} labels, wanted at least two labels: train on more "
                f"examples (max_train_samples){do}"
            )
        if os.environ.get("RANK", "0") == "0":
            print(
                f"{name}: the {n} examples of {split} have one label only, so that scores say little", file=sys.stderr
            )

    @property
    def n_texts(self) -> int:
        """Texts of a sequence: 1, or 2 for a pair."""
        return self.task.n_texts

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """What tells whether data or encoder have changed under their names. Raises InputError if they are not there.

        data_sha256: of all texts and labels that the run reads, and of the names of the classes where the data have
        them. checkpoint_digest: see `files_digest`.
        """
        digest = hashlib.sha256()
        for split, examples in sorted(self.rows.items()):
            digest.update(json.dumps([split, examples.texts, examples.labels]).encode())
        if names := self.task.facts.get("labels"):
            digest.update(json.dumps(names).encode())
        return {"data_sha256": digest.hexdigest(), "checkpoint_digest": files_digest(self.options.checkpoint)}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint. Raises InputError if it cannot be loaded."""
        return load_tokenizer(self.options.checkpoint)

    def tokens(self, max_length: int, layout: Layout | None) -> dict[str, Tokens]:
        """Split -> tokens, at most `max_length` per example. They are cached on disk for later runs."""
        if self._tokens is None or self._tokens[0] != max_length:
            cache = Path(self.options.output_dir) / TOKENS
            encoded = {n: self.task.encode(split, self.tokenizer, max_length, cache) for n, split in self.rows.items()}
            self._tokens = max_length, encoded
        return {split: tokens.with_layout(layout) for split, tokens in self._tokens[1].items()}
