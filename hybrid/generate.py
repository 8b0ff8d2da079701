"""Train a hybrid to generate text: accelerate launch -m hybrid.generate --data FOLDER --checkpoint gpt2"""

from common.options import GenerateOptions
from common.training import tune
from hybrid.method import Hybrid

if __name__ == "__main__":
    tune(Hybrid, GenerateOptions)
