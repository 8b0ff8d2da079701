"""Train biases to generate text: accelerate launch -m bitfit.generate --data FOLDER --checkpoint gpt2"""

from bitfit.method import BitFit
from common.options import GenerateOptions
from common.training import tune

if __name__ == "__main__":
    tune(BitFit, GenerateOptions)
