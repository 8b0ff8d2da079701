"""Train adapters to generate text: accelerate launch -m adapters.generate --data FOLDER --checkpoint gpt2"""

from adapters.method import Adapters
from common.options import GenerateOptions
from common.training import tune

if __name__ == "__main__":
    tune(Adapters, GenerateOptions)
