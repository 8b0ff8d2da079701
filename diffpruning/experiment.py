"""Score against the share of non-zeros: accelerate launch -m diffpruning.experiment --task_name mrpc"""

from common.experiments import sweep
from diffpruning.method import DiffPruning

TUNING = {"lr": (5e-4, 1e-3, 2e-3, 4e-3), "n_epochs": (3, 20)}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

SPACE = {"sparsity_penalty": (1.25e-8, 1.25e-7, 1.25e-6)}
"""What scripts.search tries of its options; the share of non-zeros stays as it is."""

if __name__ == "__main__":
    sweep(DiffPruning(density=density) for density in (0.0005, 0.001, 0.0025, 0.005, 0.01))
