"""Score against prefix length: accelerate launch -m prefix.experiment --task_name mrpc"""

from common.experiments import sweep
from common.study.space import Range
from prefix.method import PrefixTuning

TUNING = {"lr": (1e-2, 3e-2), "n_epochs": (5, 20), "prefix_length": (20, 100)}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

SPACE = {"prefix_length": Range(1, 100, log=True)}
"""What scripts.search tries of the method's own options: no MLP, which needs learning rates of another order."""

if __name__ == "__main__":
    sweep(PrefixTuning(prefix_length=length) for length in (1, 2, 5, 10, 20, 50, 100))
