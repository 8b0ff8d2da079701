"""Make tables, figures and tests of the rows of the protocol that exist: python -m scripts.publish

Without an option it prints the tables. --figures FOLDER draws scores against learning rates. --data FOLDER compares the
variants by paired tests, beside the rows. --pages writes the tables into README.md and results/README.md, between the
lines <!-- answer --> and <!-- /answer -->, and so on. --submissions FOLDER writes the predictions of test sets by the
runs with the first seed, which are in --output_dir.
"""

from pathlib import Path

from tqdm import tqdm

from common.errors import InputError, one_line_errors
from common.options import Arguments, PredictOptions
from common.runs import RESULT, read_rows
from common.runtime import files
from common.study import claims, figures, front_page, protocol, rates
from common.study.protocol import Protocol
from common.study.rates import Found


def compare(known: Protocol, methods: list[Found], answers: Path, path: Path, data: str) -> None:
    """Write the comparisons of the variants with all seeds, of each encoder."""
    whole = rates.by_encoder([each for each in methods if each.is_whole])
    rows = {name: claims.compare(known, list(some.values()), answers, data) for name, some in whole.items()}
    files.write_json(path, {"resamples": claims.N, **rows})


def blocks(known: Protocol, of_block: dict[str, list[Found]], path: Path) -> dict[str, str]:
    """Name -> text, with the comparisons in a file."""
    methods, tests = of_block["answer"], files.read_json(path) if path.is_file() else {}
    whole = rates.by_encoder([each for each in methods if each.is_whole])
    answers = [front_page.answer(known, list(some.values()), tests.get(name, [])) for name, some in whole.items()]
    of_rates = [rates.table_of_rates(list(some.values())) for some in rates.by_encoder(methods).values()]
    texts = {name: rates.tables(found) for name, found in of_block.items()}
    return texts | {"answer": "\n\n".join(answers), "rates": "\n\n".join(of_rates)}


def submit(methods: list[Found], output_dir: Path, out: Path, data: str) -> int:
    """Write the test predictions of each variant and task with all seeds; return how many have no run here."""
    from common.prediction import answer

    missing = 0
    for found in tqdm([each for each in methods if each.is_whole], unit="test set"):
        row = found.runs[0]
        run = output_dir / row["method"] / row["task_name"] / row["run"]
        if not (run / RESULT).is_file():
            missing += 1
            continue
        for path in answer(row["method"], PredictOptions(run=str(run), data=data)):
            target = out / f"{Path(found.cell.checkpoint).name}-{found.cell.variant}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(target, lambda part, path=path: part.write_bytes(path.read_bytes()))  # type: ignore[misc]
    return missing


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--rows", type=Path, default=Path("results/protocol.jsonl"), help="of scripts.results")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="for the figures, such as results/figures")
    parser.add_argument("--data", help="a folder with the official GLUE download, hub, or demo")
    parser.add_argument(
        "--pages", action="store_true", help="write the tables into the pages, instead of printing them"
    )
    parser.add_argument("--submissions", type=Path, metavar="FOLDER", help="for the predictions; needs --data")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/protocol"), help="folder of all runs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        known = protocol.read()
        driver = protocol.Driver(Path(), args.rows, [])
        diverged = read_rows(driver.without_score) if driver.without_score.is_file() else []
        rows, of_block = read_rows(args.rows), dict[str, list[Found]]()
        for name, part in known.parts.items():
            found = rates.find(list(protocol.cells(known, [name], data=args.data or "")), rows, diverged)
            seen = {each.cell.name for each in of_block.setdefault(part.block, [])}
            of_block[part.block] += [each for each in found if each.cell.name not in seen]
        methods = of_block["answer"]
        if not any(of_block.values()):
            raise InputError(
                f"{args.rows} has no variant with all learning rates: train them first, by scripts.results"
            )
        if args.submissions is not None:
            if args.data is None:
                raise InputError("--submissions is given without --data FOLDER: give both")
            missing = submit(methods, args.output_dir, args.submissions, args.data)
            print(
                f"{missing} runs are not in {args.output_dir}, and have no predictions" if missing else args.submissions
            )
            return
        if args.figures is not None:
            for block, found in of_block.items():
                for name, figure in rates.draw(found, "rates" if block == "answer" else block).items():
                    figures.save(figure, args.figures / f"{name}.png")
        path = args.rows.with_name(f"{args.rows.stem}-comparisons.json")
        if args.data is not None:
            compare(known, methods, driver.answers, path, args.data)
        parts = blocks(known, of_block, path)
        if not args.pages:
            print("\n\n".join(filter(None, parts.values())))
            return
        for page in (protocol.REPOSITORY / "README.md", protocol.REPOSITORY / "results" / "README.md"):
            front_page.put(page, parts)


if __name__ == "__main__":
    main()
