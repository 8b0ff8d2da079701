"""Fine-tune with DoRA: accelerate launch -m dora.tune --task_name mrpc --rank 8 --alpha 8 --lr 5e-4"""

from common.training import tune
from dora.method import Dora

if __name__ == "__main__":
    tune(Dora)
