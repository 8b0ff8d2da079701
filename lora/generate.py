"""Train LoRA to generate text: accelerate launch -m lora.generate --data FOLDER --checkpoint gpt2 --rank 8"""

from common.options import GenerateOptions
from common.training import tune
from lora.method import Lora

if __name__ == "__main__":
    tune(Lora, GenerateOptions)
