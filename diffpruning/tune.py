"""Fine-tune with diff pruning: accelerate launch -m diffpruning.tune --task_name mrpc --density 0.005"""

from common.training import tune
from diffpruning.method import DiffPruning

if __name__ == "__main__":
    tune(DiffPruning)
