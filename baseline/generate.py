"""Train a whole model to generate text: accelerate launch -m baseline.generate --data FOLDER --checkpoint gpt2"""

from baseline.method import Baseline
from common.options import GenerateOptions
from common.training import tune

if __name__ == "__main__":
    tune(Baseline, GenerateOptions)
