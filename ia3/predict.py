"""Predict texts with an (IA)3 run: python -m ia3.predict --run FOLDER --text "..." """

from common.inference import predict
from ia3.method import Ia3

if __name__ == "__main__":
    predict(Ia3)
