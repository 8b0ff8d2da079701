"""Score against the number of trained layers: accelerate launch -m baseline.experiment --task_name mrpc"""

from baseline.method import Baseline
from common.experiments import sweep

if __name__ == "__main__":
    sweep(Baseline(top_k=top_k) for top_k in (0, 1, 2, 3, 4, 6, 8, 10, 12, None))
