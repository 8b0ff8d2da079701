"""Make tables, figures and tests of the rows of the protocol that exist: python -m scripts.publish

Without an option it prints the tables. --figures FOLDER draws scores against learning rates. --data FOLDER compares the
variants by paired tests, and writes them beside the rows. --pages PAGE ... writes the tables into these pages,
between the lines <!-- answer --> and <!-- /answer -->, and so on. --submissions FOLDER writes the predictions of test
sets by the runs with the first seed, and --list prints the folders of the chosen runs; both need --output_dir.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import InputError, check, one_line_errors
from common.options import Arguments, PredictOptions
from common.runs import RESULT, read_rows
from common.runtime import files
from common.study import claims, figures, front_page, protocol, rates
from common.study.protocol import Protocol
from common.study.rates import Found

Blocks = dict[str, list[Found]]
"""Name of the tables of some parts -> what is found of their cells."""


def find(known: Protocol, rows: Path, data: str = "") -> Blocks:
    """What is found in a file of rows; a block that would repeat the comparison of methods is empty.

    Raises:
        InputError: no variant has all learning rates.
    """
    other = protocol.beside(rows, "diverged.jsonl")
    found_rows, diverged = read_rows(rows), read_rows(other) if other.is_file() else []
    blocks: Blocks = {}
    for name, part in known.parts.items():
        found = rates.find(list(protocol.cells(known, [name], data=data)), found_rows, diverged)
        seen = {each.cell.name for each in blocks.setdefault(part.block, [])}
        blocks[part.block] += [each for each in found if each.cell.name not in seen]
    compared = {each.cell.name for each in blocks.get("answer", [])}
    for name, found in blocks.items():
        if name != "answer" and {each.cell.name for each in found} <= compared:
            blocks[name] = []
    if not any(blocks.values()):
        of = f" on {data} data" if data in ("hub", "demo") else ""
        raise InputError(f"{rows} has no variant{of} with all learning rates: train them first, by scripts.results")
    return blocks


def whole(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Encoder -> its variants that are compared: those with all seeds."""
    return rates.by_encoder([each for each in found if each.is_whole])


def texts(known: Protocol, blocks: Blocks, comparisons: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Name -> the tables, and for the comparison of methods what the tests say."""
    found = {name: rates.tables(some) for name, some in blocks.items() if some}
    methods = blocks.get("answer", [])
    answers = [front_page.answer(known, some, comparisons.get(name, [])) for name, some in whole(methods).items()]
    of_rates = map(rates.table_of_rates, rates.by_encoder(methods).values())
    found |= {"answer": "\n\n".join(answers), "rates": "\n\n".join(of_rates)}
    return {name: text for name, text in found.items() if text}


def chosen_runs(found: Sequence[Found], output_dir: Path, first_seed_only: bool) -> Iterator[tuple[Found, Path]]:
    """The run folders of variants with all seeds. Raises InputError if none of them is there."""
    there = 0
    for each in (each for each in found if each.is_whole):
        for row in each.runs[: 1 if first_seed_only else None]:
            run = output_dir / row["method"] / row["task_name"] / row["run"]
            if (run / RESULT).is_file():
                there += 1
                yield each, run
    if not there:
        raise InputError(f"{output_dir} has none of the runs: give the --output_dir of scripts.results")


def submit(found: Sequence[Found], output_dir: Path, out: Path, data: str) -> None:
    """Write the test predictions of each variant and task with all seeds, as far as their runs are there."""
    from common.prediction import answer

    for each, run in tqdm(list(chosen_runs(found, output_dir, first_seed_only=True)), unit="test set"):
        for path in answer(each.cell.words[0], PredictOptions(run=str(run), data=data)):
            target = out / f"{Path(each.cell.checkpoint).name}-{each.cell.variant}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(target, partial(shutil.copyfile, path))


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--rows", type=Path, default=Path("results/protocol.jsonl"), help="of scripts.results")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="for the figures, such as results/figures")
    parser.add_argument("--data", help="a folder with the official GLUE download, hub, or demo")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], metavar="PAGE", help="pages with the lines above")
    parser.add_argument("--submissions", type=Path, metavar="FOLDER", help="for the predictions; needs --data")
    parser.add_argument("--list", action="store_true", help="print the folders of the chosen runs, and nothing else")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/protocol"), help="folder of all runs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        no_data = args.submissions is not None and args.data is None
        check({"--submissions is given without --data FOLDER: give both": no_data})
        known = protocol.read()
        blocks = find(known, args.rows, args.data or "")
        methods = blocks.get("answer", [])
        if args.list:
            for _, run in chosen_runs(methods, args.output_dir, first_seed_only=False):
                print(run)
            return
        for block, found in blocks.items() if args.figures is not None else ():
            for name, figure in rates.draw(found, "rates" if block == "answer" else block).items():
                figures.save(figure, args.figures / f"{name}.png")
        path = protocol.beside(args.rows, "comparisons.json")
        if args.data is not None and whole(methods):
            answers = protocol.beside(args.rows, "answers.jsonl")
            compared = {name: claims.compare(known, some, answers, args.data) for name, some in whole(methods).items()}
            files.write_json(path, {"resamples": claims.N, **compared})
        parts = texts(known, blocks, claims.read(path) if path.is_file() else {})
        for page in args.pages:
            there = front_page.put(page, parts)
            check({f"{page} has no line <!-- answer -->, or of another name: add it": not there})
            print(f"{page}: {', '.join(there)}")
        if args.submissions is not None:
            submit(methods, args.output_dir, args.submissions, args.data)
        elif not args.pages:
            print("\n\n".join(parts.values()))


if __name__ == "__main__":
    main()
