"""Predict texts with a prefix tuning run: python -m prefix.predict --run FOLDER --text "..." """

from common.inference import predict
from prefix.method import PrefixTuning

if __name__ == "__main__":
    predict(PrefixTuning)
