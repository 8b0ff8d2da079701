"""Score against rank: accelerate launch -m lora.experiment --task_name mrpc"""

from common.experiments import sweep
from lora.method import Lora

TUNING = {"lr": (1e-4, 5e-4), "n_epochs": (3, 20), "rank": (4, 16)}
"""What scripts/run_tune.sh tries, as the mirrored repository does."""

if __name__ == "__main__":
    sweep(Lora(rank=rank, alpha=rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
