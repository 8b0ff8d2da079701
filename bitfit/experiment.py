"""Score of training all biases, or one group of them: accelerate launch -m bitfit.experiment --task_name mrpc"""

from typing import Any

from common.experiments import sweep
from bitfit.method import SETS, BitFit

TUNING = {"lr": (4e-4, 1e-3, 2e-3, 3e-3), "n_epochs": (3, 20)}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

SPACE = {"terms": (("all",), ("query_mlp",))}
"""What scripts.search tries of the method's own options."""

if __name__ == "__main__":
    grid: list[Any] = [("all",), ("query_mlp",), *((group,) for group in SETS["all"])]
    sweep(BitFit(terms=terms) for terms in grid)
