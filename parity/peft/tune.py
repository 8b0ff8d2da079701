"""Fine-tune with a method of peft: accelerate launch -m parity.peft.tune --kind lora --task_name mrpc --lr 1e-3"""

from common.training import tune
from parity.peft.method import Peft

if __name__ == "__main__":
    tune(Peft)
