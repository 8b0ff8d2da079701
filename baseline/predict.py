"""Predict texts with a baseline run: python -m baseline.predict --run FOLDER --text "..." """

from baseline.method import Baseline
from common.inference import predict

if __name__ == "__main__":
    predict(Baseline)
