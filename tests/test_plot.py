"""Figures show the numbers of the rows, can be read without colour, and nothing in them overlaps."""

import json
import math
import sys
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import REPOSITORY, exits_with_one_line
from test_aggregation import row

from common import methods
from common.study import aggregation, curves, figures
from common.training import train
from lora.method import Lora
from scripts import plot

PARAMETERS, TIME, MEMORY = figures.COSTS


def grouped(rows):
    """The one setting of some rows, and its configurations."""
    (found,) = aggregation.group(rows).items()
    return found


def points(figure):
    """Number of a configuration -> its coordinates in the figure."""
    (axes,) = figure.axes
    lines = {line.get_gid(): line.get_xydata()[0] for line in axes.lines if line.get_gid()}
    return {int(name.removeprefix("configuration-")): tuple(place) for name, place in lines.items()}


def words(figure):
    """All text of a figure, on one line."""
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    return " ".join(" ".join([*(text.get_text() for text in figure.texts), *legend, axes.get_xlabel()]).split())


def luminance(colour):
    """Relative luminance from 0 to 1, as WCAG 2 defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_any_two_methods_can_be_distinguished_in_grey():
    looks = [figures.style(number) for number in range(15)]
    for one, other in combinations(looks, 2):
        differ = one["marker"] != other["marker"] and one["linestyle"] != other["linestyle"]
        assert differ or abs(luminance(one["color"]) - luminance(other["color"])) > 0.1, (one, other)
    assert len({str(sorted(figures.style(number).items(), key=str)) for number in range(56)}) == 56
    assert len({look["color"] for look in looks[:7]}) == 7
    assert all(1.05 / (luminance(look["color"]) + 0.05) > 2 for look in looks)  # contrast to white; yellow has 1.3


def test_a_method_looks_the_same_in_every_figure():
    """Whatever other methods are in it."""
    rows = [row(method=name, score=0.1 * n) for n, name in enumerate(("hybrid", "adapters", "bitfit"))]
    for some in (rows, rows[:1], rows[1:]):
        setting, configurations = grouped(some)
        (axes,) = figures.draw(setting, configurations, "score", TIME).axes
        found = {line.get_gid(): line.get_color() for line in axes.lines if line.get_gid()}
        wanted = {f"configuration-{n}": figures.style_of(c.method)["color"] for n, c in enumerate(configurations)}
        assert found == wanted
    names = methods.names()
    assert len({str(figures.style_of(name)) for name in names}) == len(names)


def test_the_pareto_front_holds_the_points_that_no_other_dominates():
    points = {(1, 0.5): True, (2, 0.5): False, (2, 0.7): True, (3, 0.6): False, (4, 0.75): False, (4, 0.8): True}
    assert figures.front([*points, (1, 0.5)]) == [*points.values(), True]  # equal points do not dominate each other


def test_a_point_is_the_mean_of_its_seeds_with_the_t_interval_and_the_cost():
    rows = [row(seed=seed, score=score, train_seconds=10.0 * seed, peak_memory_mib=seed) for seed, score in (
        (1, 0.5), (2, 0.6), (3, 0.7),
    )]  # fmt: skip
    rows += [row(method="bitfit", score=0.55)]
    setting, configurations = grouped(rows)
    lora = [each.method for each in configurations].index("lora")
    for cost, x in ((PARAMETERS, 1000), (TIME, 20), (MEMORY, 3)):
        figure = figures.draw(setting, configurations, "score", cost)
        assert points(figure)[lora] == pytest.approx((x, 0.6))
        (bars,) = figure.axes[0].containers  # a single seed has no interval
        (((_, low), (_, high)),) = bars.lines[2][0].get_segments()
        assert (low, high) == pytest.approx((0.3516, 0.8484), abs=1e-4)  # by hand: 0.6 -+ 4.3027 * 0.1 / sqrt(3)


def test_unknown_memory_is_not_drawn():
    rows = [row(peak_memory_mib=None), row(seed=43), row(method="bitfit", peak_memory_mib=7)]
    setting, configurations = grouped(rows)
    figure = figures.draw(setting, configurations, "score", MEMORY)
    bitfit = [each.method for each in configurations].index("bitfit")
    assert points(figure) == {bitfit: pytest.approx((7, 0.6))}
    assert "LoRA" not in words(figure)
    assert figures.known(grouped(rows[:2])[1], MEMORY) == []


def test_full_fine_tuning_is_recognised_by_its_size_not_its_name():
    shared = {"total_params": 5000}
    rows = [row(method="bitfit", trainable_params_without_head=5000, seed=seed, **shared) for seed in (1, 2)]
    setting, configurations = grouped([*rows, row(method="baseline", trainable_params_without_head=4999, **shared)])
    assert [each.method for each in configurations if figures.trains_all(each)] == ["bitfit"]
    said = words(figures.draw(setting, configurations, "score", TIME))
    assert "full fine-tuning its 95 % interval" in said
    _, others = grouped([row(**shared)])
    assert "full fine-tuning" not in words(figures.draw(setting, others, "score", TIME))


def test_the_head_alone_is_drawn_left_of_all_others():
    rows = [row(method="baseline", top_k=k, trainable_params_without_head=n) for k, n in ((0, 0), (1, 7), (2, 10**8))]
    setting, configurations = grouped(rows)
    figure = figures.draw(setting, configurations, "score", PARAMETERS)
    (axes,) = figure.axes
    places = {x: axes.transData.transform((x, 0.6))[0] for x, _ in points(figure).values()}
    left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
    assert left < places[0] < places[7] < places[10**8] < right
    assert "0: head alone" in axes.get_xlabel()
    figure.canvas.draw()
    assert {"0", "10k", "100M"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_the_best_training_settings_of_each_method_and_its_options_are_shown():
    rows = [row(lr=1e-3, score=0.6), row(lr=2e-3, score=0.7), row(rank=4, score=0.5), row(method="bitfit", score=0.4)]
    setting, configurations = grouped(rows)
    shown = [configurations[number] for number in points(figures.draw(setting, configurations, "score", TIME))]
    assert sorted(each.mean("score") for each in shown) == [0.4, 0.5, 0.7]


def test_lines_connect_configurations_that_differ_in_size_only():
    def lora(rank, **changes):
        return row(rank=rank, alpha=rank, trainable_params_without_head=10 * rank, **changes)

    rows = [lora(8, score=0.6), lora(2), lora(4), lora(16, targets=["key"]), row(method="bitfit")]
    rows += [row(rank=8, alpha=99, trainable_params_without_head=80, score=0.5)]
    rows += [row(method="baseline", random_params=n, trainable_params_without_head=n) for n in (5, 6)]
    _, configurations = grouped([*rows, row(method="hybrid")])
    (line,) = figures.size_lines(configurations, "score")
    assert [each.label for each in line] == [
        f"LoRA ({size})" for size in ("r = 2, \u03b1 = 2", "r = 4, \u03b1 = 4", "r = 8")
    ]


def test_a_figure_names_the_data_encoder_seeds_and_device_of_its_numbers():
    rows = [row(seed=seed, data="demo", max_train_samples=1234, device="a device") for seed in (1, 2)]
    setting, configurations = grouped(rows)
    said = words(figures.draw(setting, configurations, "score", TIME))
    for part in (
        "rte, synthetic data, subset (max_train_samples 1,234), minilm (abababababab)",
        "seeds 1, 2, 2 per point",
        "95 % t interval",
        "selected on: development set",
        "On a device.",
        "training time (s)",
    ):
        assert part in said
    (axes,) = figures.draw(setting, configurations, "score", TIME).axes
    assert axes.get_ylabel() == "accuracy, development set"
    setting, configurations = grouped([row(select="holdout", dev_score=0.5, dev_accuracy=0.5)])
    said = words(figures.draw(setting, configurations, "score", PARAMETERS))
    assert "Seed 42 only." in said
    assert "selected on: held-out training examples" in said
    assert "majority class" not in said  # its majority class is that of the held-out examples


def crowd():
    """Rows of many methods, with long names, several seeds and costs over many decades."""
    names = ("adapters", "bitfit", "lora", "prefix", "prompt", "hybrid", "diffpruning")
    rows = [
        row(
            method=name, seed=seed, score=0.5 + 0.03 * number + 0.01 * seed, checkpoint="/a/long/path" * 12,
            trainable_params_without_head=10**number, train_seconds=10.0 ** (2 + number / 2), device="a device " * 9,
        )
        for number, name in enumerate(names)
        for seed in range(3)
    ]  # fmt: skip
    options = {"placement": "parallel", "activation": "relu", "scaling": 0.123456, "bottleneck_size": 123456}
    rows += [row(method="adapters", checkpoint="/a/long/path" * 12, **options)]
    everything = {"trainable_params_without_head": 10**8, "total_params": 10**8}
    return [*rows, *(row(method="baseline", seed=s, checkpoint="/a/long/path" * 12, **everything) for s in range(2))]


@pytest.mark.parametrize("cost", figures.COSTS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("rows", [crowd(), [row()], [row("mrpc", seed=s, score=s / 9) for s in (1, 2)]])
def test_nothing_overlaps_or_leaves_the_figure(rows, cost):
    setting, configurations = grouped(rows)
    with figures.look():
        figure = figures.draw(setting, configurations, "score", cost)
        figure.canvas.draw()
        (axes,) = figure.axes
        outer = figure.bbox
        legend = axes.get_legend()
        boxes = [legend.get_window_extent(), *(text.get_window_extent() for text in figure.texts)]
        legend.set_in_layout(False)
        boxes.append(axes.get_tightbbox())
    for box in boxes:
        assert outer.x0 - 1 < box.x0 < box.x1 < outer.x1 + 1
        assert outer.y0 - 1 < box.y0 < box.y1 < outer.y1 + 1
    for one, other in combinations(boxes, 2):
        assert one.y0 > other.y1 - 1 or other.y0 > one.y1 - 1


def test_an_interval_wider_than_all_means_does_not_flatten_them():
    rows = [row(seed=1, score=0.5), row(seed=2, score=0.6), row(method="bitfit", score=0.57)]  # 0.55 -+ 0.64
    setting, configurations = grouped(rows)
    figure = figures.draw(setting, configurations, "score", TIME)
    low, high = figure.axes[0].get_ylim()
    assert 0.4 < low < 0.5 < 0.57 < high < 0.7
    assert "cut at the edge of the figure" in words(figure)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments): the paths that the command prints."""

    def main(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
        plot.main()
        return capsys.readouterr().out.splitlines()

    return main


def test_rows_give_the_same_png_and_svg_files_each_time(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (row(), row(method="bitfit"))))
    printed = run(path)
    assert len(printed) == 3 * 2
    assert {line.rpartition("-")[2] for line in printed} == {
        f"{cost.name}.{form}" for cost in figures.COSTS for form in ("png", "svg")
    }
    written = sorted((tmp_path / "figures").iterdir())
    assert sorted(printed) == [str(path) for path in written]
    before = {path: path.read_bytes() for path in written}
    assert run(path) == printed
    assert {path: path.read_bytes() for path in written} == before
    assert all(ElementTree.fromstring(text) for path, text in before.items() if path.suffix == ".svg")
    only = run(path, "--format", "svg", "--out", tmp_path / "other")
    assert {line.rpartition(".")[2] for line in only} == {"svg"}


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    some = [row(task, method=name) for task in ("rte", "cola") for name in ("lora", "bitfit")]
    path.write_text("\n".join(json.dumps(each) for each in some))
    return path


@pytest.mark.parametrize(("name", "begin"), [("a.pdf", b"%PDF"), ("b.PNG", b"\x89PNG"), ("c.svg", b"<?xml")])
def test_one_figure_is_one_file_in_the_format_of_its_suffix_the_same_each_time(run, rows_file, tmp_path, name, begin):
    words = (rows_file, "--tasks", "rte", "--costs", "time", "--out", tmp_path / name)
    contents = []
    for _ in range(2):
        assert run(*words) == [str(tmp_path / name)]
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(begin)


def test_size_title_and_labels_are_those_a_paper_wants(run, rows_file, tmp_path):
    words = ["--tasks", "rte", "--costs", "time", "--out", tmp_path / "a.svg", "--methods", "lora", "--no_notes"]
    run(
        rows_file, *words, "--width", "5", "--height", "3", "--title", "A title", "--xlabel", "x of it", "--ylabel", "y"
    )
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert (root.get("width"), root.get("height")) == ("360pt", "216pt")
    said = "".join(root.itertext())
    for text, wanted in {"A title": 1, "x of it": 1, "LoRA (r = 8)": 1, "BitFit": 0, "minilm": 0, "Seed 42": 0}.items():
        assert (text in said) == wanted, text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "a.pdf"), "a.pdf is one file, but there are 6 figures"),
        (("--out", "a.eps"), "no figures are written as eps: choose .png, .svg, .pdf or a folder"),
        (("--tasks", "mrpc"), "no rows of mrpc: there are cola, rte"),
        (("--methods", "prompt"), "no rows of prompt: there are bitfit, lora"),
        (("--width", "nan"), "width is nan inches"),
        (("--height", "1"), "height is 1 inches: choose from 2 to 40"),
        (("--height", "2", "--title", "word " * 60), "height is 2 inches: choose at least 2.5, for text and legend"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line_and_no_file(rows_file, words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert said in exits_with_one_line(capfd, str(rows_file), *words, program=plot.main)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_text_of_any_kind_can_be_drawn(tmp_path):
    text = "$\\frac{ <b> & ]]> --> \x00\x1b \ud800 \n_"
    setting, configurations = grouped([row(checkpoint=text, device=text, data=text, seed=1), row(
        checkpoint=text, device=text, data=text, method="adapters", placement=text,
    )])  # fmt: skip
    for form in figures.FORMATS:
        figures.save(figures.draw(setting, configurations, "score", TIME), tmp_path / f"text.{form}")
    assert "$\\frac{ <b> & ]]> -->" in "".join(ElementTree.parse(tmp_path / "text.svg").getroot().itertext())


def test_the_committed_rows_make_figures(run, tmp_path):
    rows = REPOSITORY / "results" / "scores.jsonl"
    printed = run(rows, "--out", tmp_path, "--format", "svg", "--by", "accuracy")
    assert len(printed) == 3 * 2  # of mrpc and rte
    assert "full fine-tuning" in "".join((tmp_path / line).read_text() for line in printed)


@pytest.mark.slow
def test_the_curve_of_several_seeds_is_their_mean(options, run):
    pairs = [train(Lora(rank=1), options(n_epochs=2, seed=seed)) for seed in (1, 2)]
    folders = [folder for folder, _ in pairs]
    printed = run(*folders)
    assert printed == [str(folders[0] / f"learning_curve.{form}") for form in ("png", "svg")]
    figure = curves.learning_curves(folders)
    _, right = figure.axes
    line, majority = right.lines
    read = [dict(zip(*curves.read_curves(folder)["validation/score"], strict=True)) for folder in folders]
    wanted = [(epoch, math.fsum(curve[epoch] for curve in read) / 2) for epoch in (1, 2)]
    assert line.get_xydata() == pytest.approx(np.array(wanted))
    assert majority.get_ydata()[0] == pairs[0][1]["majority_score"]
    said = " ".join(text.get_text() for text in figure.legends[0].texts)
    assert "mean and range of seeds 1, 2" in said
    assert "synthetic data" in figure.get_suptitle()


def test_a_learning_curve_has_the_colour_of_its_method(tmp_path, monkeypatch):
    """Also where another method is drawn first, and for several configurations of one method."""
    made = [row(method="prefix"), row(method="lora", rank=4), row(method="lora", rank=8)]
    rows = {tmp_path / str(number): each for number, each in enumerate(made)}
    curve = {"train/loss": ([1, 2], [0.7, 0.6]), "validation/score": ([1, 2], [0.5, 0.6])}
    monkeypatch.setattr(curves, "read_curves", lambda run: curve)
    monkeypatch.setattr(curves, "read_result", rows.__getitem__)
    for some in (list(rows), list(rows)[1:]):
        left, _ = curves.learning_curves(some).axes
        wanted = sorted(figures.style_of(rows[run]["method"])["color"] for run in some)
        assert sorted(line.get_color() for line in left.lines) == wanted


def test_out_may_be_one_file_for_a_learning_curve_but_not_for_several_figures(options, monkeypatch, tmp_path, capfd):
    folder, result = train(Lora(rank=1), options())
    monkeypatch.setattr(sys, "argv", ["plot", str(folder), "--out", str(tmp_path / "a" / "curve.svg")])
    plot.main()
    ElementTree.parse(tmp_path / "a" / "curve.svg")
    (tmp_path / "rows").write_text(json.dumps(result))
    words = (str(tmp_path / "rows"), "--out", str(tmp_path / "curve.svg"))
    assert "is one file, but there are 3 figures" in exits_with_one_line(capfd, *words, program=plot.main)
    assert not (tmp_path / "curve.svg").exists()
