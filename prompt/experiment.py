"""Score against prompt length: accelerate launch -m prompt.experiment --task_name mrpc"""

from common.experiments import sweep
from common.study.space import Range
from prompt.method import PromptTuning

TUNING = {"lr": (0.05, 0.3), "n_epochs": (5, 20), "prompt_length": (20, 100)}
"""What scripts/run_tune.sh tries: as many settings as for the other methods."""

SPACE = {"prompt_length": Range(1, 100, log=True), "init": ("random", "vocabulary")}
"""What scripts.search tries of the method's own options."""

if __name__ == "__main__":
    sweep(PromptTuning(prompt_length=length) for length in (1, 5, 10, 20, 50, 100))
