"""The report holds the tables, loads nothing from elsewhere, and the recipe of every run repeats it."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import REPOSITORY, exits_with_one_line
from test_aggregation import row

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common.methods import find
from common.options import TuneOptions, parse
from common.runs import read_rows
from common.study import aggregation, recipes, report, tables
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning
from scripts.report import main

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&\ud800"


def as_row(method, options, **facts):
    """The options of a run as in its row of results: converted to JSON and back."""
    values = {name: v for name, v in asdict(options).items() if name not in ("output_dir", "report_to", "debug")}
    return json.loads(json.dumps({"method": method.name, **method.options(), **values, **facts}))


def parsed(line, kind, monkeypatch):
    """Options and method that the project's parser reads from a command."""
    words = shlex.split(line)
    start = words.index("-m")
    assert words[start + 1] == f"{kind().name}.tune"
    monkeypatch.setattr(sys, "argv", words[start + 1 :])
    return parse("program", options=TuneOptions(lr=kind.default_lr), method=kind())


@pytest.mark.parametrize(
    "method",
    [
        Lora(),
        Lora(rank=4, alpha=0.1, targets=("key", "output"), rslora=True),
        Adapters(placement="parallel", activation="relu", train_layernorm=False, drop_layers="random"),
        Adapters(train_layernorm=True, drop_layers=1, scaling=1e-3),
        Baseline(top_k=0),
        Baseline(random_params=7, random_seed=3),
        BitFit(terms=("query",)),
        PrefixTuning(prefix_length=3, hidden_dim=8),
        PromptTuning(init="text", init_text="-a 'text' of \"$HOME\"; `ls` <b>\n", level="embeddings"),
    ],
    ids=str,
)
def test_a_command_is_parsed_to_the_same_options(method, monkeypatch):
    options = TuneOptions(lr=type(method).default_lr, max_length=64, frozen_dtype="float32")
    assert parsed(recipes.command(as_row(method, options)), type(method), monkeypatch) == [options, method]


def test_every_option_of_the_loop_is_parsed_from_its_command(monkeypatch):
    options = TuneOptions(
        checkpoint="-a folder", task_name="rte", data="demo", lr=0.1, betas=(0.5, 0.25), eps=1e-9, weight_decay=0.0,
        batch_size=3, eval_batch_size=5, gradient_accumulation_steps=7, warmup_ratio=0.0, n_epochs=9, max_grad_norm=0.0,
        padding="none", frozen_dtype="bfloat16", reference=False, max_length=11, param_budget=10**6, select="holdout",
        seed=13, max_train_samples=17, max_eval_samples=19,
    )  # fmt: skip
    assert parsed(recipes.command(as_row(Lora(), options)), Lora, monkeypatch) == [options, Lora()]
    assert "--padding batch" in recipes.command(as_row(Lora(), TuneOptions(padding="batch")))


def test_the_command_of_a_committed_row_is_parsed_to_its_options(monkeypatch):
    latest = {each["method"]: each for each in read_rows(REPOSITORY / "results" / "scores.jsonl")}
    assert len(latest) > 5
    for name, each in latest.items():
        options, method = parsed(recipes.command(each), find(name), monkeypatch)
        found = json.loads(json.dumps(asdict(options) | method.options()))
        assert {key: value for key, value in each.items() if key in found} == {
            key: value for key, value in found.items() if key in each
        }


@pytest.mark.parametrize(
    ("facts", "launcher"),
    [
        ({}, "python"),
        ({"n_processes": 2, "device": "x86_64 CPU, 1 threads"}, "accelerate launch --cpu --num_processes 2"),
        ({"n_processes": 4, "mixed_precision": "bf16", "device": "NVIDIA H100"},
         "accelerate launch --num_processes 4 --mixed_precision bf16"),
    ],
)  # fmt: skip
def test_how_a_run_was_launched_is_part_of_its_command(facts, launcher):
    line = recipes.command(as_row(Lora(), TuneOptions(), **facts))
    assert line.startswith(f"{launcher} -m lora.tune --checkpoint ")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and every text with its element."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts, self.open = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open = tag

    def handle_data(self, data):
        self.texts.append((self.open, data))


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """make(rows, *arguments): the path of their report."""

    def run(rows, *arguments):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        monkeypatch.setattr(sys, "argv", ["report", str(path), "--out", str(tmp_path / "page.html"), *arguments])
        main()
        assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
        return tmp_path / "page.html"

    return run


def some_rows():
    rows = [row(seed=seed, score=score) for seed, score in ((1, 0.5), (2, 0.6), (3, 0.7))]
    rows += [row(method="bitfit", seed=seed, score=score, train_seconds=9.0) for seed, score in ((1, 0.55), (2, 0.58))]
    return [*rows, row(method="prefix", score=0.52, trainable_params_without_head=20_000, train_seconds=2000.0)]


def test_the_page_holds_the_tables_and_their_notes(make):
    page = make(some_rows(), "--compare", "lora", "bitfit")
    text = page.read_text()
    groups = aggregation.group(aggregation.read([page.with_name("rows.jsonl")]))
    wanted = [tables.of_task(*each, "score") for each in groups.items()]
    wanted += [*tables.averages(groups), tables.comparison(groups, ["lora", "bitfit"], "score")]
    for one in wanted:
        for note in [one.title, *one.notes]:
            assert report.escaped(note) in text
    lines = [re.findall(r"<td.*?</td>", line) for line in re.findall(r"<tr.*?</tr>", text)]
    found = {tuple(re.sub("<[^>]*>", "", cell) for cell in line) for line in lines if line}
    shown = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for one in wanted for line in one.rows]
    assert found == {tuple(line) for line in shown}
    assert len(found) == 3 + 3 + 1


def test_every_run_has_its_recipe(make):
    rows = [each | {"git_commit": "c0ffee", "git_dirty": True, "torch_version": "9.9"} for each in some_rows()]
    text = make(rows).read_text()
    for each in rows:
        assert report.escaped(recipes.command(each)) in text
        assert report.escaped(each["run"]) in text
    assert text.count("git checkout c0ffee") == len(rows)
    assert text.count("c0ffee with uncommitted changes") == len(rows)
    assert text.count("torch 9.9") == len(rows)
    names = re.findall(r'<details id="([^"]+)"', text)
    assert len(names) == len(set(names)) == 3
    elements = Elements(text).found
    assert {attributes["data-recipe"] for tag, attributes in elements if tag == "tr" and attributes} == set(names)
    points = [attributes["data-recipe"] for tag, attributes in elements if tag == "g" and "data-recipe" in attributes]
    assert sorted(points) == sorted(3 * names)
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_unknown_memory_is_reported_and_not_drawn(make):
    text = make([row(peak_memory_mib=None)]).read_text()
    assert "memory unknown, largest of the seeds" in text
    assert "figure-0-time" in text
    assert "figure-0-memory" not in text


def test_the_page_loads_nothing_from_elsewhere(make):
    text = make(some_rows()).read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "image")
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            assert attributes.get(name, "#").startswith("#")
        assert "url(" not in attributes.get("style", "").replace("url(#", "")


def test_text_of_rows_is_escaped(make):
    rows = [row(checkpoint=HOSTILE, data=HOSTILE, device=HOSTILE, git_commit=HOSTILE, run="<script>", seed=1)]
    rows += [row(checkpoint=HOSTILE, data=HOSTILE, method="adapters", placement=HOSTILE, torch_version=HOSTILE)]
    found = Elements(make(rows).read_text())
    assert [tag for tag, _ in found.found].count("script") == 1
    assert not [
        tag for tag, attributes in found.found if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert any("<script>alert(1)</script>" in text for tag, text in found.texts if tag == "code")


def test_bad_input_leaves_no_page(tmp_path, capfd):
    path, out = tmp_path / "rows", tmp_path / "page.html"
    path.write_text(json.dumps(row()))
    for words, said in (
        (["--by", "f1"], "choose score, accuracy"),
        (["--compare", "lora", "bitfit"], "no rows of bitfit to compare"),
        (["--out", str(path / "page.html")], "cannot write"),
    ):
        arguments = [str(path), *([] if "--out" in words else ["--out", str(out)]), *words]
        assert said in exits_with_one_line(capfd, *arguments, program=main)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows"]


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path):
    """A browser without a network."""
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on the path: the page is not tried in a browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1200,1000"]
    flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
    flags += ["host-resolver-rules=MAP * ~NOTFOUND", f"user-data-dir={tmp_path / 'profile'}"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_the_page_works_in_a_browser(browser, make, tmp_path):
    from matplotlib.image import imread
    from selenium.webdriver import ActionChains, Keys

    hostile = [row("cola", checkpoint=HOSTILE, method="adapters", placement=HOSTILE)]
    browser.get(make(some_rows() + hostile).as_uri())
    part = "//h2[text()='rte, full, minilm']/following-sibling::div"
    first = browser.find_element("xpath", f"{part}[@class='wide']//table")
    headers = {each.text.split(" ↕")[0]: each for each in first.find_elements("css selector", "th button")}

    def sorted_by(name, press=lambda button: button.click()):
        press(headers[name])
        place = list(headers).index(name)
        state = first.find_elements("css selector", "th")[place].get_attribute("aria-sort")
        rows = first.find_elements("css selector", "tbody tr")
        return state, [row.find_elements("css selector", "td")[place].text for row in rows]

    assert sorted_by("seconds") == ("ascending", ["9", "10", "2,000"])  # as text, 10 would come first
    assert sorted_by("seconds") == ("descending", ["2,000", "10", "9"])
    assert sorted_by("standard deviation") == ("ascending", ["0.0212", "0.1000", "n/a"])
    assert sorted_by("standard deviation") == ("descending", ["0.1000", "0.0212", "n/a"])
    assert sorted_by("method", lambda button: button.send_keys(Keys.ENTER)) == (
        "ascending",
        ["BitFit", "LoRA (r = 8)", "prefix tuning (l = 20)"],
    )
    assert len(first.find_elements("css selector", "th[aria-sort=none]")) == len(headers) - 1

    point = browser.find_element("xpath", f"{part}[@class='figures']//*[starts-with(@aria-label, 'LoRA')]")
    tip, recipe = browser.find_element("id", "tip"), browser.find_element("id", point.get_attribute("data-recipe"))
    assert not tip.is_displayed()
    ActionChains(browser).move_to_element(point).perform()
    assert tip.is_displayed()
    for said in ("LoRA (r = 8)", "0.6000", "0.3516 to 0.8484", "1, 2, 3", "1,000 parameters", "10.0 s", "99 MiB"):
        assert said in tip.text
    picture = tmp_path / "page.png"
    browser.save_screenshot(str(picture))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert len(np.unique(imread(picture).reshape(-1, 3), axis=0)) > 50  # a blank page has one colour

    assert recipe.get_attribute("open") is None
    ActionChains(browser).click(point).perform()
    assert recipe.get_attribute("open") == "true"
    assert "python -m lora.tune" in recipe.text
    assert not tip.is_displayed()
    other = first.find_elements("css selector", "tbody tr")[2]
    opened = browser.find_element("id", other.get_attribute("data-recipe"))
    other.find_elements("css selector", "td")[3].click()
    assert "python -m prefix.tune" in opened.text

    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
