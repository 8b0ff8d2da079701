"""Fine-tune with (IA)3: accelerate launch -m ia3.tune --task_name mrpc"""

from common.training import tune
from ia3.method import Ia3

if __name__ == "__main__":
    tune(Ia3)
