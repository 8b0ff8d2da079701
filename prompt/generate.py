"""Train a prompt to generate text: accelerate launch -m prompt.generate --data FOLDER --checkpoint gpt2"""

from common.options import GenerateOptions
from common.training import tune
from prompt.method import PromptTuning

if __name__ == "__main__":
    tune(PromptTuning, GenerateOptions)
