"""Scores of a model, for the training loop and for prediction alike."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common.encoders import n_outputs
from common.metrics import mean_score
from common.runtime.shards import reshard
from common.task_data import Task
from common.tokens import Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

COLLAPSED = "collapsed"
"""Among the scores: 1 where the model gives all rows of the validation set one answer, which is worth none."""


def evaluate(
    task: Task, model: nn.Module, splits: dict[str, Tokens], batch_size: int, accelerator: "Accelerator"
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores on every split, those after the first with a suffix, and `score`, the mean of the first one's metrics.

    And the outputs that they are of: split -> (rows, outputs).
    """
    scores: dict[str, float] = {}
    outputs = {}
    for split, tokens in splits.items():
        values, outputs[split] = task.score(model, tokens, batch_size, accelerator)
        suffix = "_" + split.removeprefix("validation_") if scores else ""
        scores |= {name + suffix: value for name, value in values.items() if not suffix or name != COLLAPSED}
    return scores | {"score": mean_score(scores[name] for name in task.metrics)}, outputs


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    tokens: Tokens,
    batch_size: int,
    accelerator: "Accelerator",
    progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """The model's outputs for every row, in row order, on every process: (rows, outputs).

    The batches are cut before they are dealt out to the processes, so that each row meets the same neighbours however
    many processes there are; every row is filled in by exactly one process and the sum over them puts it together.

    Args:
        model: without a wrapper for several processes, whose forward pass would wait for all of them.
        progress: called with the number of rows of each batch.
    """
    model.eval()
    every = torch.zeros(len(tokens), n_outputs(model), device=accelerator.device)
    # In the order of their lengths, which puts rows of similar lengths side by side.
    batches = tokens.lengths.argsort(stable=True).split(batch_size)
    for first in range(0, len(batches), accelerator.num_processes):
        dealt = batches[first : first + accelerator.num_processes]
        # One without a batch runs the last one too, for nothing: a sharded model's forward pass is that of all.
        rows = dealt[min(accelerator.process_index, len(dealt) - 1)]
        batch, _ = tokens.batch(rows, accelerator.device)
        outputs = model(**batch).logits.float()
        if accelerator.process_index < len(dealt):
            every[rows.to(every.device)] = outputs
        progress(sum(map(len, dealt)))
    reshard(model)
    return accelerator.reduce(every, reduction="sum").cpu().numpy()
