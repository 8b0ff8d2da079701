"""Score against the number of trained layers: accelerate launch -m baseline.experiment --task_name mrpc"""

from common.experiments import sweep
from baseline.method import Baseline

TUNING = {"batch_size": (16, 32), "lr": (1e-5, 2e-5, 3e-5, 5e-5), "n_epochs": (2, 3, 4)}
"""What scripts/run_tune.sh tries: the values of the mirrored repository."""

if __name__ == "__main__":
    sweep(Baseline(top_k=top_k) for top_k in (0, 1, 2, 3, 4, 6, 8, 10, 12, None))
