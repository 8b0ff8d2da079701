"""Predict texts with a LoRA run: python -m lora.predict --run FOLDER --text "..." """

from common.inference import predict
from lora.method import Lora

if __name__ == "__main__":
    predict(Lora)
