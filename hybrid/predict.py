"""Predict texts with a hybrid run: python -m hybrid.predict --run FOLDER --text "..." """

from common.inference import predict
from hybrid.method import Hybrid

if __name__ == "__main__":
    predict(Hybrid)
