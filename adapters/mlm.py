"""Train language adapters (MAD-X): accelerate launch -m adapters.mlm --data TEXTFILES --invertible"""

from common.options import MaskedLMOptions
from common.training import tune
from adapters.method import Adapters

if __name__ == "__main__":
    tune(Adapters, MaskedLMOptions)
