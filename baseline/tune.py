"""Fine-tune the encoder, or its top layers: accelerate launch -m baseline.tune --task_name rte --top_k 4"""

from common.training import tune
from baseline.method import Baseline

if __name__ == "__main__":
    tune(Baseline)
