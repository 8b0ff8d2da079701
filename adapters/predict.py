"""Predict texts with an adapter run: python -m adapters.predict --run FOLDER --text "..." """

from adapters.method import Adapters
from common.inference import predict

if __name__ == "__main__":
    predict(Adapters)
