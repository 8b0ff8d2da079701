"""Train the encoder by masked language modelling: accelerate launch -m baseline.mlm --data TEXTFILES"""

from common.options import MaskedLMOptions
from common.training import tune
from baseline.method import Baseline

if __name__ == "__main__":
    tune(Baseline, MaskedLMOptions)
