"""Fine-tune with DoRA: accelerate launch -m dora.tune --task_name mrpc --rank 8 --alpha 8 --lr 1e-3"""

from common.training import tune
from dora.method import Dora

if __name__ == "__main__":
    tune(Dora)
