"""Train LoHa to generate text: accelerate launch -m loha.generate --data FOLDER --checkpoint gpt2 --rank 8"""

from common.options import GenerateOptions
from common.training import tune
from loha.method import Loha

if __name__ == "__main__":
    tune(Loha, GenerateOptions)
