"""Train a prefix to generate text: accelerate launch -m prefix.generate --data FOLDER --prefix_length 10"""

from common.options import GenerateOptions
from common.training import tune
from prefix.method import PrefixTuning

if __name__ == "__main__":
    tune(PrefixTuning, GenerateOptions)
