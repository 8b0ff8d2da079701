"""Fine-tune with prefix tuning: accelerate launch -m prefix.tune --task_name mrpc --prefix_length 20"""

from common.training import tune
from prefix.method import PrefixTuning

if __name__ == "__main__":
    tune(PrefixTuning)
