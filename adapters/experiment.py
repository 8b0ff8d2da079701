"""Score against bottleneck size: accelerate launch -m adapters.experiment --task_name mrpc"""

from common.experiments import sweep
from common.study.space import Range
from adapters.method import Adapters

TUNING = {"lr": (1e-4, 1e-3), "n_epochs": (3, 20), "bottleneck_size": (64, 256)}
"""What scripts/run_tune.sh tries: the values of the mirrored repository."""

SPACE = {"bottleneck_size": Range(4, 256, log=True), "placement": ("houlsby", "pfeiffer", "parallel")}
"""What scripts.search tries of the method's own options."""

if __name__ == "__main__":
    sweep(Adapters(bottleneck_size=size) for size in (2, 4, 8, 16, 32, 64, 128, 256, 512))
