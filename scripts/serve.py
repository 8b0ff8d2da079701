"""Serve trained runs by HTTP: python -m scripts.serve RUN [RUN ...], each FOLDER or NAME=FOLDER

Runs of one encoder share it: the examples of one forward pass may be of any of them. POST /predict takes
{"task": NAME, "texts": [...]}; GET /tasks lists the tasks; docs/serving.md has the rest.
"""

import socket
from argparse import Namespace
from pathlib import Path

from common.errors import check, one_line_errors
from common.options import Arguments


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, which gets the name of its task")
    parser.add_argument("--load_from", type=Path, metavar="FOLDER", help="runs below it may be loaded by HTTP")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free")
    parser.add_argument("--batch_size", type=int, default=64, help="examples of a forward pass")
    parser.add_argument("--wait_ms", type=float, default=4.0, help="time in which requests may join a batch")
    parser.add_argument("--max_texts", type=int, default=256, help="examples of a request")
    parser.add_argument("--max_characters", type=int, default=100_000, help="characters of a request's texts")
    parser.add_argument("--checkpoint", help="base model, if it has moved since training")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        counts = {name: getattr(args, name) for name in ("batch_size", "max_texts", "max_characters")}
        check(
            {
                **{f"{name} is {value}: choose at least 1": value < 1 for name, value in counts.items()},
                f"wait_ms is {args.wait_ms}: choose from 0 to 1000": not 0 <= args.wait_ms <= 1_000,
                f"port is {args.port}: choose from 0 to 65535": not 0 <= args.port <= 65_535,
                f"load_from is {args.load_from}: wanted a folder": (
                    args.load_from is not None and not args.load_from.is_dir()
                ),
            }
        )
        serve(args)


def serve(args: Namespace) -> None:
    """Load the runs and answer requests until a signal ends it."""
    import uvicorn

    from common.runtime.threads import share_cores
    from common.service import Batcher, Service
    from common.web import LOCAL, Limits, build

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.create_server((args.host, args.port), family=family) as listening:
        share_cores()
        service = Service(args.checkpoint, args.batch_size)
        for given in args.runs:
            name, is_named, folder = given.rpartition("=")
            run = service.add(Path(folder if is_named else given), name or None)
            alone = f", in forward passes of its own: {run.reason}" if run.reason else ""
            print(f"{run.name}: {run.config['method']} on {run.config['base_checkpoint']}{alone}")
        batcher = Batcher(service, args.wait_ms / 1_000)
        hosts = LOCAL if args.host in LOCAL else ("*",)
        app = build(service, batcher, Limits(args.max_texts, args.max_characters), args.load_from, hosts)
        print(f"http://{args.host}:{listening.getsockname()[1]}", flush=True)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
        finally:
            batcher.stop()


if __name__ == "__main__":
    main()
