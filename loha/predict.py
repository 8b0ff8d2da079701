"""Predict texts with a LoHa run: python -m loha.predict --run FOLDER --text "..." """

from common.inference import predict
from loha.method import Loha

if __name__ == "__main__":
    predict(Loha)
