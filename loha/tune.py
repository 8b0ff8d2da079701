"""Fine-tune with LoHa: accelerate launch -m loha.tune --task_name mrpc --rank 8 --alpha 8 --lr 4e-3"""

from common.training import tune
from loha.method import Loha

if __name__ == "__main__":
    tune(Loha)
