"""Score against prefix length: accelerate launch -m prefix.experiment --task_name mrpc"""

from common.experiments import sweep
from prefix.method import PrefixTuning

if __name__ == "__main__":
    sweep(PrefixTuning(prefix_length=length) for length in (1, 2, 5, 10, 20, 50, 100))
