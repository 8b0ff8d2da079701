"""What the loop asks of a task, and the data of a run: the rows of its task, their tokens and the tokenizer."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from common.checkpoints import load_tokenizer
from common.data import Examples
from common.options import TuneOptions
from common.tokens import Layout, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(Protocol):
    """What the training loop asks of a task, and all that it asks. A class for each kind of work."""

    name: str
    metrics: tuple[str, ...]
    """Names of scores; a run's score is their mean on the first validation split."""
    validations: tuple[str, ...]

    def load(self, checkpoint: str) -> nn.Module:
        """A pretrained model with the head of the task, which is new: what lies outside the encoder is trained."""

    def meta(self, checkpoint: str) -> nn.Module:
        """The same on the meta device: shapes without numbers, in no time."""

    def read(self, split: str, source: str) -> Examples:
        """The rows of a split."""

    def is_there(self, split: str, source: str) -> bool:
        """Whether the source has a split."""

    def encode(self, examples: Examples, tokenizer: Any, max_length: int, cache: Path | None) -> Tokens:
        """The rows as tokens, at most `max_length` of each."""

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """The sum over the targets of a batch; the loop divides by the targets of the whole step."""

    def score(
        self, model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """Scores by name, and the outputs that they are of."""

    def floor(self, train: Tokens, validation: Tokens) -> dict[str, float]:
        """The scores of answering without reading; empty where there is no such answer."""


HOLDOUT = "holdout"
"""Rows of the training set that select the best epoch, in the place of the validation splits."""


DECISIVE = ("checkpoint", "task_name", "data", "select", "max_train_samples", "max_eval_samples", "output_dir")
"""The options that it depends on."""


class TaskData:
    """Read when the first run asks for it, and kept for the others."""

    def __init__(self, task: Task, options: TuneOptions):
        self.task, self.options = task, options
        self._tokens: tuple[int, dict[str, Tokens]] | None = None

    def serves(self, options: TuneOptions) -> bool:
        """Whether a run with these options needs just this."""
        return all(getattr(self.options, name) == getattr(options, name) for name in DECISIVE)

    def read(self) -> None:
        """Read the rows now: most bad input is there. Raises InputError as `rows` does."""
        _ = self.rows

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """Those of the training set, under "train", of each validation split that is there, and held out.

        Raises:
            InputError: they cannot be read, or not be used.
        """
        options, task = self.options, self.task
        rows = {"train": task.read("train", options.data).sample(options.max_train_samples)}
        for split in task.validations:
            if split == task.validations[0] or task.is_there(split, options.data):
                rows[split] = task.read(split, options.data).sample(options.max_eval_samples)
        if options.select == "holdout":
            rows["train"], rows[HOLDOUT] = rows["train"].hold_out()
        return rows

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the checkpoint. Raises InputError if it cannot be loaded."""
        return load_tokenizer(self.options.checkpoint)

    def tokens(self, max_length: int, layout: Layout | None) -> dict[str, Tokens]:
        """Split -> its rows as tokens, at most `max_length` of each; they are on disk too, for later runs."""
        if self._tokens is None or self._tokens[0] != max_length:
            cache = Path(self.options.output_dir) / "tokens"
            made = {n: self.task.encode(some, self.tokenizer, max_length, cache) for n, some in self.rows.items()}
            self._tokens = max_length, made
        return {split: tokens.with_layout(layout) for split, tokens in self._tokens[1].items()}
