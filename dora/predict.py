"""Predict texts with a DoRA run: python -m dora.predict --run FOLDER --text "..." """

from common.inference import predict
from dora.method import Dora

if __name__ == "__main__":
    predict(Dora)
