"""What a task asks for, a class or a score: labels in files, loss, answers. Nothing else asks which it is."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Classes:
    """One of several classes, known by its index."""

    names: tuple[str, ...]
    """As files spell them, in the order of the indices."""

    has_classes = True
    dtype = "int64"
    """Of labels and answers."""

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        return len(self.names)

    @property
    def wanted(self) -> str:
        """What a label may be, for messages."""
        return f"one of {', '.join(self.names)}"

    def parse(self, text: str) -> int | None:
        """The label that a text stands for; None = it is none."""
        return self.names.index(text) if text in self.names else None

    def format(self, answer: float) -> str:
        """An answer as text."""
        return self.names[int(answer)]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy. logits: (batch, outputs), labels: (batch,) -> (batch,)"""
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """logits: (rows, outputs) -> (rows,) class indices"""
        return logits.argmax(axis=1)

    def floor(self, labels: Sequence[float], n_rows: int) -> np.ndarray:
        """What is answered without reading: the most frequent class. (rows,)"""
        return np.full(n_rows, Counter(labels).most_common(1)[0][0], dtype=np.int64)


@dataclass(frozen=True)
class Score:
    """A number of a range."""

    low: float = 0.0
    high: float = 5.0

    has_classes = False
    dtype = "float32"
    n_outputs = 1

    @property
    def wanted(self) -> str:
        """As that of `Classes`."""
        return f"a number from {self.low:g} to {self.high:g}"

    def parse(self, text: str) -> float | None:
        """As that of `Classes`."""
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        return score if self.low <= score <= self.high else None

    def format(self, answer: float) -> str:
        """An answer as text, clipped to the range."""
        return f"{min(max(answer, self.low), self.high):.3f}"

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Squared error. logits: (batch, 1), labels: (batch,) -> (batch,)"""
        return F.mse_loss(logits[:, 0].float(), labels, reduction="none")

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """logits: (rows, 1) -> (rows,) scores"""
        return logits[:, 0]

    def floor(self, labels: Sequence[float], n_rows: int) -> np.ndarray:
        """What is answered without reading: the mean score. (rows,)"""
        return np.full(n_rows, sum(labels) / len(labels), dtype=np.float32)
