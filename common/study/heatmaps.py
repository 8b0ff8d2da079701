"""Pictures of what `inspection` found, and one HTML page with them."""

import base64
import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.runtime import files
from common.study.figures import look, save
from common.study.inspection import EXPLAINERS, Grid, Inspection, Looked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3
"""Panels in a row of a figure."""
LONGEST = 60
"""Tokens of a text in a figure of attention."""
GRIDS = {
    "changed": ("Change of the parameters", "|W' - W| / |W|, Frobenius norm"),
    "share": ("Share of the entries that changed", "of each parameter"),
    "added": ("What is added to the hidden states", "|b| / |h|, mean over tokens"),
    "gates": ("Gates", "mean over the texts"),
}
SPECTRA = "Singular values of the changes", "as shares of the largest one of the pretrained matrix"
ABOUT_TEXTS = (
    "What each token contributes to the output of the answer, against a text of mask tokens: blue raises it, red "
    "lowers it, each row by its own largest value. A row sums to about the difference of the two outputs."
)


def grid_figure(grid: Grid, label: str) -> "Figure":
    """A heatmap: a row for each place or parameter, a column for each layer, with the values."""
    from matplotlib.figure import Figure

    values = np.array(list(grid.values()))
    rows, columns = values.shape
    with look():
        figure = Figure(figsize=(2.6 + 0.42 * columns, 0.75 + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(values, cmap="Blues", aspect="auto", vmin=0)
        axes.set_xticks(range(columns), [str(number) for number in range(columns)])
        axes.set_yticks(range(rows), list(grid))
        axes.set_xlabel("layer")
        half = float(np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                colour = "white" if value > half else "black"
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=5.5, color=colour)
        figure.colorbar(shown, label=label)
    return figure


def spectra_figure(found: Inspection) -> "Figure":
    """Singular values of the changes on a logarithmic scale: a panel for each matrix, a line for each layer."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(change.name for change in found.matrices))
    down = math.ceil(len(names) / ACROSS)
    n_layers = 1 + max(change.layer for change in found.matrices)
    with look():
        figure = Figure(figsize=(2.3 * min(ACROSS, len(names)), 1.7 * down + 0.3), layout="constrained")
        panels = figure.subplots(down, min(ACROSS, len(names)), squeeze=False, sharey=True)
        for axes, name in zip(panels.flat, names, strict=False):
            for change in found.matrices:
                values = change.singular_values.numpy()
                kept = values[values > 1e-6]  # the others are rounding errors
                if change.name == name:
                    colour = colormaps["viridis"](change.layer / max(n_layers - 1, 1))
                    axes.semilogy(range(1, len(kept) + 1), kept, color=colour, marker=".", markersize=2, linewidth=0.8)
            axes.set_title(name)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in [*panels.flat][len(names) :]:
            axes.set_axis_off()
        figure.supxlabel("number of the singular value; dark: lowest layer, bright: highest", fontsize=6.5)
    return figure


def attention_figure(text: Looked) -> "Figure":
    """Attention of each layer, mean over the heads, on one scale; a line ends what a method has put before the text."""
    from matplotlib.figure import Figure

    assert text.attention is not None
    n_before = len(text.columns) - len(text.tokens)
    attention = text.attention.numpy()[:, : n_before + LONGEST, : n_before + LONGEST]
    columns = text.columns[: attention.shape[2]]
    rows = columns[len(columns) - attention.shape[1] :]
    down = math.ceil(len(attention) / ACROSS)
    side = max(1.9, 0.11 * len(columns))
    with look():
        figure = Figure(figsize=(ACROSS * side, down * side * len(rows) / len(columns) + 0.6), layout="constrained")
        panels = figure.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True)
        for layer, (axes, values) in enumerate(zip(panels.flat, attention, strict=False)):
            shown = axes.imshow(values, cmap="Blues", vmin=0, vmax=float(attention.max()), aspect="auto")
            axes.set_title(f"layer {layer}")
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=4.5)
            axes.set_yticks(range(len(rows)), rows, fontsize=4.5)
            if n_before:
                axes.axvline(n_before - 0.5, color="#D55E00", linewidth=0.8)
        figure.colorbar(shown, ax=panels, label="attention")
    return figure


def explained_figure(found: Sequence[Inspection], number: int) -> "Figure":
    """What each token of a text contributes to the answer, a row for each run and explainer."""
    from matplotlib.figure import Figure

    names, rows = [], []
    for each in found:
        for explainer in EXPLAINERS:
            names.append(f"{each.title}: {each.texts[number].answer}, {explainer}")
            rows.append(_scaled(each.texts[number].explained[explainer].numpy()))
    tokens = found[0].texts[number].tokens
    with look():
        figure = Figure(figsize=(3 + 0.32 * len(tokens), 0.6 + 0.22 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(np.array(rows), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
        axes.set_yticks(range(len(rows)), names)
    return figure


def _scaled(values: np.ndarray) -> np.ndarray:
    """Contributions as shares of the largest one."""
    return values / max(float(np.abs(values).max()), 1e-12)


def draw(found: Sequence[Inspection]) -> Iterator[tuple[str, str, str, str, "Figure"]]:
    """File name, heading, caption, text for those who cannot see it, and figure, in the order of the page."""
    for number, run in enumerate(found, start=1):
        for name, (heading, label) in GRIDS.items():
            if grid := getattr(run, name):
                yield f"run{number}-{name}", f"{run.title}: {heading}", label, heading, grid_figure(grid, label)
        if run.matrices:
            yield f"run{number}-spectra", f"{run.title}: {SPECTRA[0]}", SPECTRA[1], SPECTRA[0], spectra_figure(run)
        for place, text in enumerate(run.texts, start=1):
            if text.attention is None:
                continue
            words = " ".join(text.tokens)
            caption = f"Rows attend to columns; mean over the heads. Answer: {text.answer}."
            if len(text.columns) > len(text.tokens):
                caption += " Left of the line: what the method has put before the text."
            heading = f"{run.title}: Attention"
            yield f"run{number}-attention{place}", heading, caption, words, attention_figure(text)
    for number, text in enumerate(found[0].texts):
        words = " ".join(text.tokens)
        yield f"explained{number + 1}", "Contributions", ABOUT_TEXTS, words, explained_figure(found, number)


def write(found: Sequence[Inspection], folder: Path) -> Path:
    """Write all figures as PNG and the page; return the path of the page."""
    parts, before = [], ""
    for name, heading, caption, text, figure in draw(found):
        save(figure, folder / f"{name}.png")
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        title = f"<h2>{html.escape(heading)}</h2>" if heading != before else ""
        picture = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
        parts.append(f"{title}<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>")
        before = heading
    runs = "".join(f"<li>{html.escape(f'{each.title}: {each.run}')}</li>" for each in found)
    body = f"<h1>Inside {len(found)} run{'s' * (len(found) > 1)}</h1><ul>{runs}</ul>" + "\n".join(parts)
    page = _PAGE.format(body=body)
    files.write_atomically(folder / "inspect.html", lambda part: part.write_text(page, encoding="utf-8"))
    return folder / "inspect.html"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Inside runs</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 1rem 0; overflow-x: auto; }} img {{ max-width: 100%; background: white; }}
figcaption {{ color: #555; font-size: 0.9rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
</style></head><body>
{body}
</body></html>
"""
