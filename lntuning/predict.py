"""Predict texts with an LN tuning run: python -m lntuning.predict --run FOLDER --text "..." """

from common.inference import predict
from lntuning.method import LnTuning

if __name__ == "__main__":
    predict(LnTuning)
