"""Train (IA)3 to generate text: accelerate launch -m ia3.generate --data FOLDER --checkpoint gpt2"""

from common.options import GenerateOptions
from common.training import tune
from ia3.method import Ia3

if __name__ == "__main__":
    tune(Ia3, GenerateOptions)
