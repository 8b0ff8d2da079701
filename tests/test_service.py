"""The HTTP service answers concurrent requests for many runs as each run alone does, and refuses others in one line."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
import uvicorn
from conftest import REPOSITORY, perturbed

from bitfit.method import BitFit
from common.checkpoints import load_model
from common.inference import answers, examples_of
from common.prediction import load, read_config
from common.saving import save_adapter
from common.service import Batcher, Busy, Service
from common.web import LOCAL, Limits, build
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning

TEXTS = ["the ruby was found in the garden", "a boy", "the girl by the sea was here", "it", "by the boy in the house"]
RUNS = {
    "sst2": (Lora(rank=2), 2),
    "mrpc": (PrefixTuning(prefix_length=3), 2),
    "stsb": (BitFit(), 1),
    "copa": (Lora(rank=1), 1),
    "mnli": (Hybrid(preset="unipelt"), 3),
}
NUMBER_OF_TEXTS = {"sst2": 1, "copa": 4}


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Task -> the folder of a run with random values."""
    home, made = tmp_path_factory.mktemp("runs"), {}
    for number, (task, (method, n_outputs)) in enumerate(RUNS.items()):
        torch.manual_seed(number)
        model = perturbed(method, load_model(checkpoints["bert"], n_outputs))
        facts = {"data": "demo", "max_length": 32, "frozen_dtype": "float32", "task_name": task}
        save_adapter(home / f"{task}-run", model, method, **facts)
        made[task] = home / f"{task}-run"
    return made


LIMITS = Limits(max_texts=8, max_characters=1_000)


@pytest.fixture(scope="module")
def port(runs, tmp_path_factory):
    """The port of a service in this process."""
    home = tmp_path_factory.mktemp("later")
    shutil.copytree(runs["sst2"], home / "again")
    (home / "empty").mkdir()
    (home / "link").symlink_to(runs["mrpc"])
    service = Service()
    for folder in runs.values():
        service.add(folder)
    batcher = Batcher(service, wait=0.004)
    server = uvicorn.Server(uvicorn.Config(build(service, batcher, LIMITS, home, LOCAL), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        pool.submit(server.run, sockets=[listening])
        yield listening.getsockname()[1]
        server.should_exit = True
    batcher.stop()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def example(task, number):
    n = NUMBER_OF_TEXTS.get(task, 2)
    texts = tuple(TEXTS[(number + i) % len(TEXTS)] for i in range(n))
    return (texts[0], "cause", *texts[2:]) if task == "copa" else texts


@pytest.fixture(scope="module")
def alone(runs):
    """Task -> what its run alone predicts for `example` of 0 to 4."""
    from accelerate import Accelerator

    found = {}
    for task, folder in runs.items():
        predictor = load(folder, read_config(folder), None, Accelerator())
        outputs = predictor.outputs(examples_of(example(task, number) for number in range(5)), 64)
        found[task] = answers(predictor.task, outputs, folder)
    return found


def assert_is(answer, wanted):
    if "score" in wanted:
        assert answer["score"] == pytest.approx(wanted["score"], abs=1.1e-3)
    else:
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert (answer["label"], answer["probability"]) == next(iter(answer["probabilities"].items()))


def test_concurrent_requests_for_many_runs_get_what_each_run_alone_predicts(port, alone):
    tasks = list(RUNS)

    def client(number):
        random = np.random.default_rng(number)
        for _ in range(6):
            task, chosen = tasks[random.integers(len(tasks))], random.integers(5, size=random.integers(1, 5))
            texts = [example(task, n)[0] if task == "sst2" else example(task, n) for n in chosen]
            status, found = ask(port, "POST", "/predict", {"task": task, "texts": texts})
            assert (status, found["task"], len(found["predictions"])) == (200, task, len(chosen))
            for answer, n in zip(found["predictions"], chosen, strict=True):
                assert_is(answer, alone[task][n])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))


def test_tasks_are_listed_loaded_and_removed_while_others_are_answered(port, alone):
    _, found = ask(port, "GET", "/tasks")
    assert [task["task"] for task in found["tasks"]] == list(RUNS)
    assert [task["shares_encoder"] for task in found["tasks"]] == [task != "mnli" for task in RUNS]
    assert found["tasks"][1]["texts"] == ["sentence1", "sentence2"]
    assert found["tasks"][1]["labels"] == ["not_equivalent", "equivalent"]
    stop, failed = threading.Event(), []

    def client():
        while not stop.is_set():
            body = {
                "run": "mrpc-run",
                "texts": [dict(zip(("sentence1", "sentence2"), example("mrpc", 2), strict=True))],
            }
            status, found = ask(port, "POST", "/predict", body)
            if status != 200 or found["predictions"][0]["label"] != alone["mrpc"][2]["label"]:
                failed.append(found)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(client)
        try:
            assert ask(port, "POST", "/tasks", {"run": "again"})[0] == 409
            assert ask(port, "POST", "/tasks", {"run": "again", "task": "more"})[0] == 201
            _, found = ask(port, "POST", "/predict", {"task": "more", "texts": TEXTS, "top": 1})
            assert [list(each["probabilities"]) for each in found["predictions"]] == [
                [a["label"]] for a in alone["sst2"]
            ]
            assert ask(port, "DELETE", "/tasks/more") == (200, {"removed": "more"})
            assert ask(port, "POST", "/predict", {"task": "more", "texts": TEXTS})[0] == 404
        finally:
            stop.set()
    assert not failed
    assert ask(port, "GET", "/healthz") == (200, {"status": "ok", "tasks": len(RUNS)})


@pytest.mark.parametrize(
    ("status", "request_line", "body", "line"),
    [
        (400, "POST /predict", b"{", "the body is not JSON in UTF-8"),
        (400, "POST /predict", b'{"task": "sst2", "texts": ["caf\xe9"]}', "the body is not JSON in UTF-8"),
        (400, "POST /predict", b"[" * 9_000, "the body is not JSON in UTF-8"),
        (400, "POST /predict", [], "the body is a list: wanted a JSON object"),
        (400, "POST /predict", {"texts": ["a"]}, "neither task nor run given"),
        (400, "POST /predict", {"task": "sst2", "run": "a", "texts": ["a"]}, "task and run given: wanted one of"),
        (404, "POST /predict", {"task": "cola", "texts": ["a"]}, "no task 'cola': there are sst2, mrpc"),
        (404, "POST /predict", {"task": ["sst2"], "texts": ["a"]}, "no task \"['sst2']\": there are sst2, mrpc"),
        (400, "POST /predict", {"task": "sst2"}, "texts are missing"),
        (400, "POST /predict", {"task": "sst2", "texts": []}, "texts are missing"),
        (400, "POST /predict", {"task": "sst2", "texts": "a"}, "texts are missing"),
        (400, "POST /predict", {"task": "sst2", "texts": ["a", " "]}, "texts[1]: 'sentence' is empty"),
        (400, "POST /predict", {"task": "sst2", "texts": [{"text": "a"}]}, "texts[0]: 'sentence' is missing"),
        (400, "POST /predict", {"task": "sst2", "texts": [5]}, "texts[0]: sst2 wants sentence, as a text"),
        (400, "POST /predict", {"task": "sst2", "texts": ["a\0"]}, "texts[0]: 'sentence' has the character U+0000"),
        (
            400,
            "POST /predict",
            {"task": "mrpc", "texts": ["a"]},
            "texts[0]: mrpc wants sentence1, sentence2, as a list",
        ),
        (400, "POST /predict", {"task": "copa", "texts": [["a", "why", "b", "c"]]}, "texts[0]: 'question' is 'why'"),
        (400, "POST /predict", {"task": "sst2", "texts": ["a"], "top": 0}, "top is 0: wanted a number from 1"),
        (413, "POST /predict", {"task": "sst2", "texts": ["a"] * 9}, "9 texts: wanted at most 8"),
        (
            413,
            "POST /predict",
            {"task": "sst2", "texts": ["a" * 1_001]},
            "1,001 characters of texts: wanted at most",
        ),
        (413, "POST /predict", b" " * 10**6, "the body is longer than 30,000 bytes"),
        (400, "POST /tasks", {"run": 5}, "run is 5: wanted a folder below that of --load_from"),
        (400, "POST /tasks", {"run": "a\0"}, "run is 'a\\x00': wanted a folder"),
        (400, "POST /tasks", {"run": "empty"}, "is not a run folder"),
        (400, "POST /tasks", {"run": "again", "task": ""}, "task is '': wanted a name"),
        (403, "POST /tasks", {"run": "../runs0"}, "is not below the folder of --load_from"),
        (403, "POST /tasks", {"run": "/"}, "/ is not below the folder of --load_from"),
        (403, "POST /tasks", {"run": "link"}, "link is not below the folder of --load_from"),
        (404, "DELETE /tasks/nosuch", None, "no task 'nosuch': there are sst2"),
        (404, "GET /nosuch", None, "Not Found"),
        (405, "GET /predict", None, "Method Not Allowed"),
    ],
)
def test_a_bad_request_is_refused_with_a_code_and_one_line(port, status, request_line, body, line):
    found = ask(port, *request_line.split(), body)
    assert found[0] == status, found
    assert line in found[1]["error"]
    assert "\n" not in found[1]["error"]


def test_a_request_under_another_name_of_the_machine_is_refused(port):
    """A page in a browser on this machine may have its own name resolve to 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/tasks", headers={"Host": "elsewhere.example"})
    assert connection.getresponse().status == 400


class Echo:
    """In the place of a service: answers with the texts, when it is let."""

    batch_size = 4

    def __init__(self):
        self.let, self.batches = threading.Event(), []

    def predict(self, requests):
        self.let.wait(10)
        self.batches.append([len(rows) for _, rows in requests])
        if any("bug" in rows for _, rows in requests):
            raise RuntimeError("a bug")
        return [list(rows) for _, rows in requests]


def test_requests_join_a_batch_up_to_its_size_and_neither_errors_nor_cancelled_ones_end_it():
    echo = Echo()
    batcher = Batcher(echo, wait=0.1, most_waiting=9)
    futures = [batcher.submit(None, rows) for rows in (["a", "b"], ["c"], ["d", "e"], ["bug"], ["gone"], ["f"])]
    with pytest.raises(Busy, match="8 examples wait: try again later"):
        batcher.submit(None, ["g", "h"])
    assert futures[4].cancel()
    echo.let.set()
    assert [future.result(10) for future in futures[:3]] == [["a", "b"], ["c"], ["d", "e"]]
    for number in (3, 5):
        with pytest.raises(RuntimeError, match="a bug"):
            futures[number].result(10)
    assert echo.batches == [[2, 1, 2], [1, 1]]
    assert batcher.submit(None, ["last"]).result(10) == ["last"]
    batcher.stop()
    assert batcher.waiting == 0


@pytest.mark.long
def test_the_service_starts_from_a_shell_listens_on_this_machine_alone_and_ends_on_a_signal(runs, alone):
    command = [sys.executable, "-m", "scripts.serve", f"first={runs['sst2']}", str(runs["mrpc"]), "--port", "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines[0].startswith("first: lora on ")
        number = int(lines[2].removeprefix("http://127.0.0.1:"))
        _, found = ask(number, "POST", "/predict", {"task": "first", "texts": [example("sst2", 3)[0]]})
        assert_is(found["predictions"][0], alone["sst2"][3])
        listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        again = [*command[:-1], str(number)]
        done = subprocess.run(again, cwd=REPOSITORY, capture_output=True, text=True)
        assert (done.returncode, done.stderr[:29], done.stderr.count("\n")) == (2, "error: Address already in use", 1)
    finally:
        process.terminate()
        assert process.wait(30) in (0, -15)
