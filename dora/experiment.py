"""Score against rank: accelerate launch -m dora.experiment --task_name mrpc"""

from common.experiments import sweep
from common.study.space import Range
from dora.method import Dora

TUNING = {"lr": (5e-4, 1.6e-3), "n_epochs": (3, 20), "rank": (4, 16)}
"""What scripts/run_tune.sh tries: as LoRA's, with learning rates of its own."""

SPACE = {"rank": Range(1, 64, log=True), "dropout": (0.0, 0.05, 0.1)}
"""What scripts.search tries of its options; alpha is fixed, so that all ranks have one range of learning rates."""

if __name__ == "__main__":
    sweep(Dora(rank=rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
