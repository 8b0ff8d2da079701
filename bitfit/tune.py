"""Fine-tune with BitFit: accelerate launch -m bitfit.tune --task_name mrpc --terms query_mlp"""

from bitfit.method import BitFit
from common.training import tune

if __name__ == "__main__":
    tune(BitFit)
