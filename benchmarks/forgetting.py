"""How much of a sentence encoder is left after tuning: python -m benchmarks.forgetting RUN [RUN ...] --data FOLDER

MiniLM and MPNet here are sentence encoders: the cosine of two sentences' mean token states says how alike they are. It
is correlated with the labels of STS-B's development set (Spearman), by which nothing is trained: of the untouched
encoder, and of each run, with what it adds and without its head. RUN: the folder of a run, or one with runs in it.
"""

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from common import data, metrics, tasks
from common.errors import InputError, one_line_errors
from common.results import provenance, read_result
from common.runs import append_once, find_runs, read_rows
from common.runtime.device import device_name

TASK = "stsb"


def spearman(model: Any, tokenizer: Any, source: str, batch_size: int = 100) -> float:
    """Spearman's correlation of the cosines of the sentences' states with STS-B's labels.

    model: in evaluation mode, with a head that is not used. source: --data.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator

    from common.encoders import encoder
    from common.fast import prepare

    device = Accelerator().device
    prepare(model, device, padding="batch")
    model.to(device)
    examples = data.read(tasks.find(TASK), "validation", source)
    every = {sentence for column in examples.texts for sentence in column}
    sentences = sorted(every, key=lambda sentence: (len(sentence), sentence))
    vectors = []
    with torch.inference_mode():
        for begin in range(0, len(sentences), batch_size):
            batch = tokenizer(sentences[begin : begin + batch_size], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(device)
            states = encoder(model)(**batch).last_hidden_state  # (batch, tokens, hidden)
            mask = batch["attention_mask"][..., None]
            vectors.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu())
    place = {sentence: number for number, sentence in enumerate(sentences)}
    both = [torch.cat(vectors)[[place[sentence] for sentence in column]] for column in examples.texts]
    return metrics.spearmanr((both[0] * both[1]).sum(1).numpy(), np.array(examples.labels))


def measure(folder: Path, source: str) -> dict[str, Any]:
    """The row of a run. Raises InputError if it cannot be loaded, or if it is not of an encoder that can be called."""
    from common.checkpoints import load_tokenizer
    from common.loading import load_adapter

    result = read_result(folder)
    model, method = load_adapter(folder)
    if {"max_new_tokens", "mask_share"} & result.keys() or "forward" in vars(model):
        raise InputError(f"{folder} is no classification, or calls its encoder in another way: leave it out")
    after = spearman(model, load_tokenizer(result["checkpoint"]), source)
    names = ("run", "method", "task_name", "checkpoint", "seed", "lr", "trainable_params_without_head")
    facts = (
        {name: result[name] for name in names}
        | method.options()
        | {"data": source, "device": device_name(model.device)}
    )
    return facts | {"before": untouched(result["checkpoint"], source), "after": round(after, 4)}


@cache
def untouched(checkpoint: str, source: str) -> float:
    """That of the encoder before it is tuned."""
    from common.checkpoints import load_model, load_tokenizer

    return round(spearman(load_model(checkpoint, 1).eval(), load_tokenizer(checkpoint), source), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="hub, a folder with the official download, or demo")
    parser.add_argument("--out", type=Path, help="append the rows to this file of JSON lines")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        from tqdm import tqdm

        from common.runtime.threads import share_cores

        share_cores()
        folders = list(dict.fromkeys(folder for home in args.runs for folder in find_runs(home)[0]))
        if not folders:
            raise InputError("none of these runs is finished: train them first")
        known = {row["run"] for row in read_rows(args.out)} if args.out and args.out.is_file() else set()
        for folder in tqdm(folders, unit="run"):
            if folder.name in known:
                continue
            try:
                row = measure(folder, args.data)
            except InputError as error:
                if len(folders) == 1:
                    raise
                tqdm.write(f"left out: {error}", file=sys.stderr)
                continue
            tqdm.write(json.dumps(row))
            if args.out:
                append_once(args.out, row | provenance())


if __name__ == "__main__":
    main()
