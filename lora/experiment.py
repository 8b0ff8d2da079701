"""Score against rank: accelerate launch -m lora.experiment --task_name mrpc"""

from typing import get_args

from common.encoders import Linear
from common.experiments import sweep
from common.study.space import Range
from lora.method import Lora

TUNING = {"lr": (1e-4, 5e-4), "n_epochs": (3, 20), "rank": (4, 16)}
"""What scripts/run_tune.sh tries: the values of the mirrored repository."""

SPACE = {"rank": Range(1, 64, log=True), "dropout": (0.0, 0.05, 0.1), "targets": (Lora.targets, get_args(Linear))}
"""What scripts.search tries of its options; alpha is fixed, so that all ranks have one range of learning rates.

All six linear layers scored higher than query and value on MRPC and CoLA (results/README.md), but not significantly.
"""

if __name__ == "__main__":
    sweep(Lora(rank=rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
