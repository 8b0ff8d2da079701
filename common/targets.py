"""The two kinds of targets, classes and scores: labels in files, losses and answers."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import Diverged

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.I)
"""A number in a file. float() also reads the digits of other scripts, 1_0 and spaces."""


def _finite(logits: np.ndarray) -> np.ndarray:
    """The same logits. Raises Diverged if some are NaN or infinite: they are no answer, and argmax would take one."""
    n_bad = len(logits) - int(np.isfinite(logits).all(axis=1).sum())
    if n_bad:
        raise Diverged(f"the outputs for {n_bad:,} of {len(logits):,} examples are NaN or infinite")
    return logits


@dataclass(frozen=True)
class Classes:
    """One of several classes, known by its index."""

    names: tuple[str, ...]
    """Class names in files, in the order of the indices."""

    has_classes = True
    dtype = "int64"
    """Of labels and answers."""

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        return len(self.names)

    @property
    def wanted(self) -> str:
        """The valid labels, for error messages."""
        return f"one of {', '.join(self.names)}"

    def parse(self, text: str) -> int | None:
        """The label for a text in a file; None if the text is not a label."""
        return self.names.index(text) if text in self.names else None

    def format(self, answer: float) -> str:
        """An answer as the text in a file."""
        return self.names[int(answer)]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy. logits: (batch, outputs), labels: (batch,) -> (batch,)"""
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """logits: (examples, outputs) -> class indices, (examples,). Raises Diverged if they are not finite."""
        return _finite(logits).argmax(axis=1)

    def floor(self, labels: Sequence[float], n_examples: int) -> np.ndarray:
        """Constant answers of the majority class, (examples,)."""
        return np.full(n_examples, Counter(labels).most_common(1)[0][0], dtype=np.int64)


@dataclass(frozen=True)
class Score:
    """A number from a range."""

    low: float = 0.0
    high: float = 5.0
    digits: str = ".3f"
    """Format of an answer in a file."""

    has_classes = False
    dtype = "float32"
    n_outputs = 1

    @property
    def wanted(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def parse(self, text: str) -> float | None:
        score = float(text) if NUMBER.fullmatch(text) else math.nan
        return score if self.low <= score <= self.high else None

    def format(self, answer: float) -> str:
        """An answer as the text in a file, clipped to the range."""
        return f"{min(max(answer, self.low), self.high):{self.digits}}"

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Squared error. logits: (batch, 1), labels: (batch,) -> (batch,)"""
        return F.mse_loss(logits[:, 0].float(), labels, reduction="none")

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """logits: (examples, 1) -> scores, (examples,). Raises Diverged if they are not finite."""
        return _finite(logits)[:, 0]

    def floor(self, labels: Sequence[float], n_examples: int) -> np.ndarray:
        """Constant answers of the mean score, (examples,)."""
        return np.full(n_examples, sum(labels) / len(labels), dtype=np.float32)
