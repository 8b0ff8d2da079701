"""Fine-tune with several methods: accelerate launch -m hybrid.tune --task_name mrpc --parts lora:rank=4 bitfit"""

from common.training import tune
from hybrid.method import Hybrid

if __name__ == "__main__":
    tune(Hybrid)
