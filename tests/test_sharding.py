"""Under FSDP 2 a run gives the same weights under the same names as without it, and resumes where it stopped.

accelerate shards over accelerators only. Here the FSDP 2 code of accelerate and torch runs on CPUs, with gloo: the
script makes accelerate accept several CPU processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from common.encoders import GENERATORS

pytestmark = [pytest.mark.slow, pytest.mark.long]

RUNS = {"baseline": {}, "lora": {"rank": 2}, "prefix": {"prefix_length": 3, "hidden_dim": 8}}
SCRIPT = """
import json, sys
from accelerate.state import AcceleratorState, DistributedType, PartialState

usual = AcceleratorState.__init__

def on_cpus(self, *args, **kwargs):
    usual(self, *args, **kwargs)
    if kwargs.get("fsdp_plugin") is not None:
        self.fsdp_plugin = kwargs["fsdp_plugin"]
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

AcceleratorState.__init__ = on_cpus

from common.runtime.processes import destroy_group_at_end
from common.errors import InputError, Interrupted
from common.methods import find
from common.options import GenerateOptions, TuneOptions
from common.training import train

KINDS = {"tune": TuneOptions, "generate": GenerateOptions}

with destroy_group_at_end():
    for line in json.load(open(sys.argv[1])):
        try:
            train(find(line["method"])(**line["own"]), KINDS[line.get("kind", "tune")](**line["options"]))
        except (InputError, Interrupted) as stop:
            print("stopped:", stop)
"""


def train_all(lines: list[dict], folder: Path, **launched: str) -> str:
    """Train one run after the other on two processes, and return what rank 0 prints."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "runs.json").write_text(json.dumps(lines))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"ACCELERATE_USE_CPU": "True", "PYTHONPATH": str(REPOSITORY)} | launched
    command = [sys.executable, str(folder / "script.py"), str(folder / "runs.json")]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": REPOSITORY}
    ranks = [
        subprocess.Popen(command, env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}, **settings)
        for rank in ("0", "1")
    ]
    try:
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said[0]
    return said[0]


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Folders of runs with and without sharding, by kind and run, and what the sharded ones printed.

    Two processes cannot halve the 19 examples; one of the sharded runs is interrupted after its first step.
    """
    folders, said = {}, {}
    for kind, launched in (("sharded", SHARDED), ("unsharded", {})):
        out = tmp_path_factory.mktemp(kind)
        small = {"checkpoint": checkpoints["bert"], "data": "demo", "task_name": "sst2", "output_dir": str(out)}
        small |= {"max_train_samples": 19, "max_eval_samples": 19, "eval_batch_size": 8, "n_epochs": 2, "lr": 1e-3}
        small |= {"batch_size": 2, "gradient_accumulation_steps": 2}
        lines = [{"method": name, "own": own, "options": small} for name, own in RUNS.items()]
        holdout = small | {"select": "holdout", "max_train_samples": 21, "frozen_dtype": "bfloat16", "seed": 1}
        lines.append({"method": "lora", "own": {}, "options": holdout})
        for generator in GENERATORS:
            pairs = small | {"checkpoint": checkpoints[generator], "task_name": "translation", "max_length": 24}
            pairs |= {"max_new_tokens": 5, "num_beams": 2}
            lines.append({"method": "lora", "own": {"rank": 2}, "kind": "generate", "options": pairs})
        if kind == "sharded":
            lora = {"method": "lora", "own": RUNS["lora"]}
            lines.insert(0, lora | {"options": small | {"time_limit": 1e-6}})
            lines.append({"method": "adapters", "own": {"drop_layers": "random"}, "options": small})
        said[kind] = train_all(lines, out, **launched)
        folders[kind] = {path.parent.relative_to(out): path.parent for path in out.rglob("result.json")}
    return folders, said["sharded"]


def test_sharded_training_gives_the_weights_and_scores_of_unsharded_training(runs):
    (sharded, plain), said = runs[0].values(), runs[1]
    assert sharded.keys() == plain.keys()
    assert len(plain) == len(RUNS) + 1 + len(GENERATORS)
    assert "resuming at step 1 of" in said
    for run, folder in plain.items():
        for path in folder.rglob("*.safetensors"):
            ours, wanted = load_file(sharded[run] / path.relative_to(folder)), load_file(path)
            assert ours.keys() == wanted.keys()
            for name, tensor in wanted.items():
                torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4, msg=f"{run} {name}")
        ours, wanted = (json.loads((each / "result.json").read_text()) for each in (sharded[run], folder))
        for key in wanted:
            if key.startswith(("trained_", "trainable", "total", "best_", "dev_")):
                assert ours[key] == pytest.approx(wanted[key], abs=1e-6, rel=1e-6), (run, key)


def test_a_method_that_cannot_be_sharded_is_refused(runs):
    told = [line for line in runs[1].splitlines() if line.startswith("stopped:") and "time limit" not in line]
    assert told == [
        "stopped: FSDP and a method that skips parameters in some steps: launch without FSDP",
    ]
