"""Predict texts with a diff pruning run: python -m diffpruning.predict --run FOLDER --text "..." """

from common.inference import predict
from diffpruning.method import DiffPruning

if __name__ == "__main__":
    predict(DiffPruning)
