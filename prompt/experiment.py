"""Score against prompt length: accelerate launch -m prompt.experiment --task_name mrpc"""

from common.experiments import sweep
from prompt.method import PromptTuning

if __name__ == "__main__":
    sweep(PromptTuning(prompt_length=length) for length in (1, 5, 10, 20, 50, 100))
