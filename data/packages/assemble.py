"""Assembles texts in many languages from packages: `python -m data.fetch text`.

The files that it writes:
    messages.jsonl   texts of programs, 32 messages a document
    code.jsonl       source files
    NOTICE           each package with its version, its hash, and the license of each kind of file
    licenses/        the license files of the packages
    SHA256SUMS       the hashes of the above
A line of JSON has `text`, `language`, `domain` (interface or code), `package` and `file`. Of a
language at most 2 MB are taken, file by file in an order by hash. Files above 200 kB and files with
a line above 1,000 characters, which programs wrote, are left out, and so are repeated messages.
"""

import hashlib
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from data.packages.message_catalogs import read_catalog
from data.packages.text_packages import LOCALES, ORIGINALS_OF, TEXT_PACKAGES, TextPackage
from data.packages.wheels import check_sha256, open_wheel, read_member
from errors import DataError

MAX_LANGUAGE_BYTES = 2_000_000
MAX_FILE_BYTES, MAX_LINE_CHARACTERS = 200_000, 1_000
MESSAGES_PER_DOCUMENT = 32
LICENSE_FILE = re.compile(r"[^/]*\.dist-info/.*(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE)[^/]*")
LICENSE_BYTES = 1 << 20
INTERFACE, CODE = "interface", "code"
FILES = {INTERFACE: "messages.jsonl", CODE: "code.jsonl"}


class Text(NamedTuple):
    """A document with where it comes from."""

    text: str
    language: str
    domain: str
    package: str
    file: str


def texts_key(packages: tuple[TextPackage, ...] = TEXT_PACKAGES) -> str:
    """Returns a hash of the packages and of the rules of this file."""
    rules = [MAX_LANGUAGE_BYTES, MAX_FILE_BYTES, MAX_LINE_CHARACTERS, MESSAGES_PER_DOCUMENT]
    content = json.dumps([packages, LOCALES, ORIGINALS_OF, rules], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def assemble(
    wheels: dict[str, Path], folder: Path, packages: tuple[TextPackage, ...] = TEXT_PACKAGES
) -> None:
    """Writes the texts of packages to a folder.

    Args:
        wheels: the package files by `NAME==VERSION`.
        folder: the folder, which exists and is empty.
        packages: the packages.

    Raises:
        DataError: if a package file is another one, is damaged, or lacks the files of a language.
    """
    texts = list[Text]()
    notice = ["Texts from packages, with their licenses. `licenses/` has the full texts.", ""]
    (folder / "licenses").mkdir()
    for package in packages:
        path = wheels[package.package]
        check_sha256(path, package.package, package.sha256)
        with open_wheel(path) as archive:
            texts += _code(archive, package)
            texts += _messages(archive, package)
            _write_licenses(archive, package, folder / "licenses")
        notice += _notice_lines(package)
    (folder / "NOTICE").write_text("\n".join(notice))
    for domain, name in FILES.items():
        lines = [json.dumps(t._asdict(), ensure_ascii=False) for t in texts if t.domain == domain]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def _code(archive: zipfile.ZipFile, package: TextPackage) -> Iterator[Text]:
    """Yields the source files of a package.

    Raises:
        DataError: if the package has no file of a language.
    """
    names = sorted(archive.namelist(), key=lambda name: hashlib.sha256(name.encode()).digest())
    for files in package.files:
        size = 0
        for name in names:
            if size > MAX_LANGUAGE_BYTES:
                break
            if not fnmatchcase(name, files.pattern):
                continue
            text = _source_text(archive, name)
            size += len(text.encode())
            if text:
                yield Text(text, files.language, CODE, package.package, name)
        if not size:
            raise DataError(
                f"{archive.filename} has no file {files.pattern} for {package.package}; "
                "set --wheel to the published file"
            )


def _source_text(archive: zipfile.ZipFile, name: str) -> str:
    """Returns the content of a source file; "" if a program wrote it, or it is no text."""
    if archive.getinfo(name).file_size > MAX_FILE_BYTES or ".min." in name:
        return ""
    try:
        text = archive.read(name).decode()
    except UnicodeDecodeError:
        return ""
    is_long = max(map(len, text.split("\n")), default=0) > MAX_LINE_CHARACTERS
    return "" if is_long or not text.strip() else text


def _messages(archive: zipfile.ZipFile, package: TextPackage) -> Iterator[Text]:
    """Yields the messages of a package by language, as documents of several messages."""
    if not package.message_license:
        return
    by_language: dict[str, dict[str, str]] = defaultdict(dict)  # Messages, each with its file.
    for name in sorted(archive.namelist()):
        folder, _, inner_path = name.partition("/locale/")
        locale = inner_path.partition("/")[0]
        if not name.endswith(".mo") or locale not in LOCALES:
            continue
        raw = read_member(archive, name, MAX_FILE_BYTES << 4)
        for message in read_catalog(raw, f"{archive.filename}: {name}"):
            by_language[LOCALES[locale]].setdefault(message.translation, name)
            if locale == ORIGINALS_OF:
                by_language["en"].setdefault(message.original, f"{folder}/locale/en")
    for language, messages in sorted(by_language.items()):
        items = [*messages.items()]
        for start in range(0, len(items), MESSAGES_PER_DOCUMENT):
            group = items[start : start + MESSAGES_PER_DOCUMENT]
            text = "\n".join(message for message, _ in group)
            yield Text(text, language, INTERFACE, package.package, group[0][1])


def _write_licenses(archive: zipfile.ZipFile, package: TextPackage, folder: Path) -> None:
    """Writes the license files of a package, under names of its own."""
    name = package.package.partition("==")[0]
    for member in archive.namelist():
        if LICENSE_FILE.fullmatch(member) and not member.endswith("/"):
            label = member.partition(".dist-info/")[2].removeprefix("licenses/")
            raw = read_member(archive, member, LICENSE_BYTES)
            (folder / f"{name}-{re.sub(r'[^A-Za-z0-9.-]+', '_', label)}").write_bytes(raw)


def _notice_lines(package: TextPackage) -> list[str]:
    lines = [f"{package.package}  sha256 {package.sha256}"]
    lines += [f"    {x.language}: {x.pattern}  {x.license}" for x in package.files]
    if package.message_license:
        lines.append(f"    messages in {len(LOCALES) + 1} languages  {package.message_license}")
    return [*lines, ""]
