"""Fine-tune with bottleneck adapters: accelerate launch -m adapters.tune --task_name mrpc --bottleneck_size 64"""

from common.training import tune
from adapters.method import Adapters

if __name__ == "__main__":
    tune(Adapters)
