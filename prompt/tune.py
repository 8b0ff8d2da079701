"""Fine-tune with prompt tuning: accelerate launch -m prompt.tune --task_name mrpc --prompt_length 20 --n_epochs 20"""

from common.training import tune
from prompt.method import PromptTuning

if __name__ == "__main__":
    tune(PromptTuning)
