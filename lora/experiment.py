"""Score against rank: accelerate launch -m lora.experiment --task_name mrpc"""

from common.experiments import sweep
from lora.method import Lora

if __name__ == "__main__":
    sweep(Lora(rank=rank, alpha=rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
