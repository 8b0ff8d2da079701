"""Train two methods with two seeds, and compare them in a pandas DataFrame: python -m examples.notebook [ENCODER]"""

import sys

from bitfit.method import BitFit
from common.notebook import results, train
from lora.method import Lora

ENCODER = (sys.argv[1:] or ["minilm"])[0]

for method in (Lora(rank=8), BitFit()):
    for seed in (42, 43):
        options = {"checkpoint": ENCODER, "n_epochs": 1, "max_train_samples": 200, "seed": seed}
        folder, result = train(method, "sst2", data="demo", output_dir="outputs/examples", **options)
        print(folder, result["best_accuracy"])

frame = results("outputs/examples")
print(frame.groupby("method")[["best_accuracy", "trainable_params_without_head", "train_seconds"]].mean())
