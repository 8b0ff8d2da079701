"""What all runs of an experiment share: the rows of their task, its tokens and the tokenizer."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from common import data, tasks
from common.checkpoints import load_tokenizer
from common.options import TuneOptions
from common.packing import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOLDOUT = "holdout"
"""Rows of the training set that select the best epoch, in the place of the validation splits."""

DECISIVE = ("checkpoint", "task_name", "data", "select", "max_train_samples", "max_eval_samples", "output_dir")
"""The options that it depends on."""


class Material:
    """Read when the first run asks for it, and kept for the others."""

    def __init__(self, options: TuneOptions):
        self.options = options
        self._tokens: tuple[int, dict[str, data.Tokens]] | None = None

    def serves(self, options: TuneOptions) -> bool:
        """Whether a run with these options needs just this."""
        return all(getattr(self.options, name) == getattr(options, name) for name in DECISIVE)

    def read(self) -> None:
        """Read the rows now: most bad input is there. Raises InputError as `rows` does."""
        _ = self.rows

    @cached_property
    def rows(self) -> dict[str, data.Examples]:
        """Those of the training set, under "train", of each validation split that is there, and held out.

        Raises:
            InputError: they cannot be read, or not be used.
        """
        options, task = self.options, tasks.find(self.options.task_name)
        rows = {"train": data.read(task, "train", options.data).draw(options.max_train_samples)}
        for split in task.validations:
            if split == task.validations[0] or data.is_there(task, split, options.data):
                rows[split] = data.read(task, split, options.data).draw(options.max_eval_samples)
        if options.select == "holdout":
            rows["train"], rows[HOLDOUT] = rows["train"].hold_out()
        return rows

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """That of the checkpoint. Raises InputError if it cannot be loaded."""
        return load_tokenizer(self.options.checkpoint)

    def tokens(self, max_length: int, layout: Layout | None) -> dict[str, data.Tokens]:
        """Split -> its rows as tokens, at most `max_length` of each; they are on disk too, for later runs."""
        if self._tokens is None or self._tokens[0] != max_length:
            cache = Path(self.options.output_dir) / "tokens"
            made = {n: data.tokenize(some, self.tokenizer, max_length, cache) for n, some in self.rows.items()}
            self._tokens = max_length, made
        return {split: tokens.laid_out(layout) for split, tokens in self._tokens[1].items()}
