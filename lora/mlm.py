"""Train LoRA by masked language modelling: accelerate launch -m lora.mlm --data TEXTFILES --rank 8"""

from common.options import MaskedLMOptions
from common.training import tune
from lora.method import Lora

if __name__ == "__main__":
    tune(Lora, MaskedLMOptions)
