"""Fine-tune with LN tuning: accelerate launch -m lntuning.tune --task_name mrpc"""

from common.training import tune
from lntuning.method import LnTuning

if __name__ == "__main__":
    tune(LnTuning)
