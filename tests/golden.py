"""Tiny runs of every method and their recorded results: python tests/golden.py records those of this machine.

tests/golden.json holds, for each instruction set, a digest of the stored tensors' values, their norm and the score of
each run. The digest leaves out the names of the tensors, so that a parameter may be renamed.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

FILE = Path(__file__).with_suffix(".json")


def runs() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> method and options of a run: every method with its defaults, and variants of them."""
    from adapters.method import Adapters
    from baseline.method import Baseline
    from common.methods import find, names
    from hybrid.method import Hybrid
    from prefix.method import PrefixTuning
    from prompt.method import PromptTuning

    found: dict[str, tuple[Any, dict[str, Any]]] = {name: (find(name)(), {}) for name in names()}
    lora = found["lora"][0]
    found |= {
        "adapters pfeiffer": (Adapters(placement="pfeiffer"), {}),
        "adapters parallel": (Adapters(placement="parallel"), {}),
        "adapters random": (Adapters(drop_layers="random"), {}),
        "baseline top": (Baseline(top_k=1), {}),
        "baseline random": (Baseline(random_params=100), {}),
        "lora and bitfit": (Hybrid(("lora", "bitfit")), {}),
        "unipelt": (Hybrid(preset="unipelt"), {}),
        "lora bfloat16": (lora, {"frozen_dtype": "bfloat16"}),
        "lora padded": (lora, {"padding": "batch"}),
        "lora regression": (lora, {"task_name": "stsb"}),
        "prefix network": (PrefixTuning(hidden_dim=8), {}),
        "prefix padded": (PrefixTuning(), {"padding": "batch"}),
        "prompt embeddings": (PromptTuning(level="embeddings"), {}),
    }
    return found


def instruction_set() -> str:
    """All that decides the last bits of a product: processor, vector instructions, version of torch."""
    vendor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("vendor_id")), "unknown"
    )
    level = torch.backends.cpu.get_cpu_capability()
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False
    return f"{platform.machine()} {vendor} {level}{' with bfloat16' if half else ''}, torch {torch.__version__}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """Digest, norm and score of one run, on one thread."""
    from conftest import save_checkpoint
    from safetensors.torch import load_file

    from common.options import TuneOptions
    from common.training import train

    method, changes = runs()[name]
    checkpoint = folder / "bert"
    if not checkpoint.is_dir():
        save_checkpoint("bert", checkpoint, vectors=False)
    small: dict[str, Any] = {"checkpoint": str(checkpoint), "data": "demo", "task_name": "mrpc", "n_epochs": 2}
    small |= {"max_train_samples": 44, "max_eval_samples": 20, "batch_size": 8, "lr": 3e-3, "report_to": ("none",)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="2"):  # as if set by a user: the run then keeps one thread
            run, result = train(method, TuneOptions(output_dir=str(folder / "runs"), **small | changes))
    finally:
        torch.set_num_threads(threads)
    tensors = [tensor for path in sorted(run.rglob("adapter.safetensors")) for tensor in load_file(path).values()]
    parts = sorted(f"{tuple(t.shape)} {t.dtype} {hashlib.sha256(t.numpy().tobytes()).hexdigest()}" for t in tensors)
    return {
        "digest": hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16],
        "norm": float(torch.stack([t.double().norm() for t in tensors]).norm()),
        "score": result["best_score"],
    }


def main() -> None:
    """Record the results of this machine beside those of others."""
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        kept[instruction_set()] = {name: outcome(name, Path(folder)) for name in runs()}
    FILE.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
