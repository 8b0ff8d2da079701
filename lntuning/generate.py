"""Train LayerNorms to generate text: accelerate launch -m lntuning.generate --data FOLDER --checkpoint gpt2"""

from common.options import GenerateOptions
from common.training import tune
from lntuning.method import LnTuning

if __name__ == "__main__":
    tune(LnTuning, GenerateOptions)
