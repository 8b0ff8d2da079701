"""Requests for several runs at once against requests for one run at a time: python -m benchmarks.serving

A service of one run of each method, on one encoder, answers the same requests twice in each turn: those of one run
after those of another, and all of them mixed. Clients are threads of another process, each with one connection and one
example a request. Every answer is compared with what the run alone predicts. The ratio is that of the rates, and
cpu_ratio the same by the processor time of the service, which other work on the machine changes less. The values of the
runs are random, on which no time depends.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from common import data, tasks
from common.errors import one_line_errors
from common.methods import names
from common.results import provenance

TASKS = ("sst2", "mrpc", "cola", "rte", "qqp", "mnli", "qnli", "stsb")
Request = tuple[str, tuple[str, ...], dict[str, Any]]
"""The name of a run, the texts of an example, and what the run alone predicts."""


def make_runs(home: Path, args: argparse.Namespace) -> list[list[Request]]:
    """Save a run of each method, and return its requests."""
    import torch
    from accelerate import Accelerator

    from common import prediction
    from common.checkpoints import load_model
    from common.inference import answers, examples_of
    from common.methods import apply, find, trainable
    from common.saving import save_adapter

    found = []
    for name, task in zip(args.methods, map(tasks.find, TASKS), strict=False):
        torch.manual_seed(0)
        method = find(name)()
        model = apply(method, load_model(args.checkpoint, task.n_outputs))
        for parameter in trainable(model).values():
            parameter.data += 0.01 * torch.randn_like(parameter)
        facts = {"task_name": task.name, "data": "demo", "max_length": 128, "frozen_dtype": "float32"}
        save_adapter(home / name, model, method, **facts)
        columns = data.read(task, "train", "demo").sample(args.requests // len(args.methods)).texts
        texts = list(zip(*columns, strict=True))
        predictor = prediction.load(home / name, prediction.read_config(home / name), None, Accelerator())
        wanted = answers(task, predictor.outputs(examples_of(texts), 64), home / name)
        found.append([(name, *each) for each in zip(texts, wanted, strict=True)])
    return found


def is_equal(answer: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if "score" in wanted:
        return abs(answer["score"] - wanted["score"]) < 2e-3
    return all(abs(answer["probabilities"][name] - value) < 1e-4 for name, value in wanted["probabilities"].items())


def seconds(service: psutil.Process, port: int, requests: list[Request], clients: int) -> tuple[float, float]:
    """Time for some requests, and processor time of the service.

    Exits if one fails, or gets another answer than its run alone gives.
    """

    def work(own: list[Request]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for name, texts, wanted in own:
            body = {"task": name, "texts": [texts]}
            connection.request("POST", "/predict", json.dumps(body))
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200 or not is_equal(found["predictions"][0], wanted):
                sys.exit(f"{body}: {answer.status} {found}, wanted {wanted}")
        return len(own)

    before, began = sum(service.cpu_times()[:2]), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        done = sum(pool.map(work, [requests[number::clients] for number in range(clients)]))
    assert done == len(requests)
    return time.perf_counter() - began, sum(service.cpu_times()[:2]) - before


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """One row: examples per second of both kinds, and their ratio in each turn."""
    singles, mixes = [], []
    with tempfile.TemporaryDirectory() as home:
        of_runs = make_runs(Path(home), args)
        mixed = [request for each in zip(*of_runs, strict=False) for request in each]
        named = [f"{name}={home}/{name}" for name in args.methods]
        command = [sys.executable, "-m", "scripts.serve", *named, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            try:
                lines = iter(service.stdout.readline, "") if service.stdout else iter(())
                port = int(next(line for line in lines if line.startswith("http://")).rpartition(":")[2])
                measure = partial(seconds, psutil.Process(service.pid), port, clients=args.clients)
                measure(mixed[: len(mixed) // 4])  # kernels are compiled for sizes at first use
                for turn in range(args.turns):
                    mixes.append(measure(mixed))
                    singles.append(tuple(map(sum, zip(*map(measure, of_runs), strict=True))))
                    print(f"turn {turn + 1}: {singles[-1]} s, mixed {mixes[-1]} s", file=sys.stderr, flush=True)
            finally:
                service.terminate()
    walls, cpus = ([one[n] / mix[n] for one, mix in zip(singles, mixes, strict=True)] for n in (0, 1))
    row: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "methods": args.methods,
        "requests": len(mixed),
        "clients": args.clients,
    }
    for name, found in (("mixed", mixes), ("single", singles)):
        row[f"{name}_per_second"] = round(len(mixed) / statistics.median(wall for wall, _ in found), 1)
    for name, ratios in (("ratio", walls), ("cpu_ratio", cpus)):
        row[name] = round(statistics.median(ratios), 3)
        row[f"{name}_range"] = [round(f(ratios), 3) for f in (min, max)]
    return row | provenance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=names(), default=["lora", "adapters", "prefix", "bitfit"])
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--requests", type=int, default=2_000, help="of all runs together")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        print(json.dumps(compare(args), indent=2))


if __name__ == "__main__":
    main()
