"""Score over seeds, since the method has no size to vary: accelerate launch -m ia3.experiment --task_name mrpc"""

from common.experiments import sweep
from ia3.method import Ia3

TUNING = {"lr": (1e-3, 3e-3, 1e-2, 3e-2), "n_epochs": (3, 20)}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

if __name__ == "__main__":
    sweep([Ia3()])
