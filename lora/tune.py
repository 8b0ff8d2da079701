"""Fine-tune with LoRA: accelerate launch -m lora.tune --task_name mrpc --rank 8 --alpha 8 --lr 5e-4"""

from common.training import tune
from lora.method import Lora

if __name__ == "__main__":
    tune(Lora)
