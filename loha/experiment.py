"""Score against rank: accelerate launch -m loha.experiment --task_name mrpc"""

from common.experiments import sweep
from common.study.space import Range, Same
from loha.method import Loha

TUNING = {"lr": (1e-3, 4e-3), "n_epochs": (3, 20), "rank": (4, 16)}
"""What scripts/run_tune.sh tries: as LoRA's, with learning rates of its own."""

SPACE = {"rank": Range(1, 64, log=True), "alpha": Same("rank")}
"""What scripts.search tries of its options; alpha = rank keeps the scale at 1, so that lr alone sets the step size."""

if __name__ == "__main__":
    sweep(Loha(rank=rank, alpha=rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
