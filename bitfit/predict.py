"""Predict texts with a BitFit run: python -m bitfit.predict --run FOLDER --text "..." """

from bitfit.method import BitFit
from common.inference import predict

if __name__ == "__main__":
    predict(BitFit)
