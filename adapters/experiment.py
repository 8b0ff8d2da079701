"""Score against bottleneck size: accelerate launch -m adapters.experiment --task_name mrpc"""

from adapters.method import Adapters
from common.experiments import sweep

if __name__ == "__main__":
    sweep(Adapters(bottleneck_size=size) for size in (2, 4, 8, 16, 32, 64, 128, 256, 512))
