"""Fine-tune with BitFit: accelerate launch -m bitfit.tune --task_name mrpc --terms query_mlp"""

from common.training import tune
from bitfit.method import BitFit

if __name__ == "__main__":
    tune(BitFit)
