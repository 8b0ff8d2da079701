"""Predict texts with a prompt tuning run: python -m prompt.predict --run FOLDER --text "..." """

from common.inference import predict
from prompt.method import PromptTuning

if __name__ == "__main__":
    predict(PromptTuning)
