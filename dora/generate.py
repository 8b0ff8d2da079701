"""Train DoRA to generate text: accelerate launch -m dora.generate --data FOLDER --checkpoint gpt2 --rank 8"""

from common.options import GenerateOptions
from common.training import tune
from dora.method import Dora

if __name__ == "__main__":
    tune(Dora, GenerateOptions)
