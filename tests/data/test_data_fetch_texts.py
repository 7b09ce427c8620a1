"""Texts out of packages: tiny wheels with source files and message catalogs; no network."""

import gettext
import hashlib
import io
import json
import struct
import zipfile

import pytest

from data import fetch
from data.packages import assemble, message_catalogs, text_packages
from data.packages.text_packages import TextFiles, TextPackage
from errors import DataError


def catalog(messages: dict[str, str], order: str = "<") -> bytes:
    """Returns a .mo file, by the manual of gettext."""
    items = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    texts = [[pair[side].encode() for pair in items] for side in (0, 1)]
    start, tables, body = 28 + 16 * len(items), [], b""
    for side in texts:
        for text in side:
            tables.append(struct.pack(f"{order}2I", len(text), start + len(body)))
            body += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, 0)
    return head + b"".join(tables) + body


MESSAGES = {"Save": "Enregistrer", "menu\x04Open": "Ouvrir", "%d day\0%d days": "%d jour\0%d jours"}


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_are_those_that_gettext_reads(order):
    raw = catalog({**MESSAGES, "Untranslated": ""}, order)
    messages = message_catalogs.read_catalog(raw, "x.mo")
    assert {*messages} == {
        ("Save", "Enregistrer"),
        ("Open", "Ouvrir"),
        ("%d day\n%d days", "%d jour\n%d jours"),
    }
    if order == "<":
        theirs = gettext.GNUTranslations(io.BytesIO(raw))
        assert theirs.gettext("Save") == "Enregistrer"
        assert theirs.pgettext("menu", "Open") == "Ouvrir"
    for damaged in (raw[:40], b"nothing"):
        with pytest.raises(DataError, match=r"x.mo is (no|a damaged) message catalog.*again"):
            message_catalogs.read_catalog(damaged, "x.mo")


def make_wheel(folder, name, members):
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages, one of which has messages."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _, first = make_wheel(
        *(wheels, "some_app"),
        {
            "some/locale/fr/LC_MESSAGES/a.mo": catalog(MESSAGES),
            "some/more/locale/fr/LC_MESSAGES/a.mo": catalog({"Save": "Enregistrer", "No": "Non"}),
            "some/locale/pt_BR/LC_MESSAGES/a.mo": catalog({"Save": "Salvar"}),
            "some/locale/xx/LC_MESSAGES/a.mo": catalog({"Save": "???"}),
            "some_app-1.dist-info/licenses/LICENSE": "a license",
        },
    )
    _, second = make_wheel(
        *(wheels, "code"),
        {
            "code/a.py": "x = 1\n",
            "code/in/b.py": "y = 2\n",
            "code/long.py": "z" * 1001,
            "code/large.py": "w\n" * 100_001,
            "code/a.min.py": "v\n",
            "code/latin.py": b"# \xe9\n",
            "code/c.js": "other\n",
            "code-1.dist-info/METADATA": "License: MIT",
            "code-1.dist-info/LICENSE.md": "another license",
        },
    )
    table = (
        TextPackage("some-app==1", first, (), "BSD-3-Clause"),
        TextPackage("code==1", second, (TextFiles("python", "code/*.py", "MIT"),)),
    )
    monkeypatch.setattr(fetch, "TEXT_PACKAGES", table)
    monkeypatch.setattr(
        fetch.assemble,
        "assemble",
        lambda wheels, folder, real=assemble.assemble: real(wheels, folder, table),
    )
    return wheels


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_have_their_language_and_their_license(packages, tmp_path, capsys):
    cache = str(tmp_path / "cache")
    assert fetch.main(["text", f"--cache={cache}", f"--wheel={packages}"]) == 0
    folder = fetch.fetch_texts(cache)  # It is there: nothing is downloaded.
    assert capsys.readouterr().out.strip() == str(folder)
    messages = {line["language"]: line for line in read(folder / "messages.jsonl")}
    assert set(messages) == {"en", "fr", "pt"}
    # A message that repeats is there once.
    assert sorted(messages["fr"]["text"].split("\n")) == sorted(
        ["Enregistrer", "Ouvrir", "%d jour", "%d jours", "Non"]
    )
    assert messages["en"]["text"].split("\n").count("Save") == 1
    assert messages["pt"] == {
        **{"text": "Salvar", "language": "pt", "domain": "interface", "package": "some-app==1"},
        "file": "some/locale/pt_BR/LC_MESSAGES/a.mo",
    }
    code = read(folder / "code.jsonl")
    assert {line["text"] for line in code} == {"x = 1\n", "y = 2\n"}
    assert {(line["language"], line["domain"]) for line in code} == {("python", "code")}
    notice = (folder / "NOTICE").read_text()
    assert "some-app==1  sha256" in notice and "python: code/*.py  MIT" in notice
    licenses = {p.name: p.read_text() for p in (folder / "licenses").iterdir()}
    assert licenses == {"some-app-LICENSE": "a license", "code-LICENSE.md": "another license"}
    for line in (folder / fetch.CHECKSUM_FILE).read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_package_that_lacks_or_differs_is_named_and_nothing_is_left(packages, tmp_path):
    cache = str(tmp_path / "cache")
    (packages / "code-1-py3-none-any.whl").rename(packages / "other.whl")
    with pytest.raises(DataError, match="wheels has no wheel of code==1; copy it there"):
        fetch.fetch_texts(cache, packages)
    raw = (packages / "other.whl").read_bytes()
    (packages / "code-1-py3-none-any.whl").write_bytes(raw[:-1] + b"x")
    with pytest.raises(DataError, match="has sha256 .*, expected .* for code==1"):
        fetch.fetch_texts(cache, packages)
    assert list((tmp_path / "cache" / "fetched").iterdir()) == []


def test_the_table_has_enough_languages_and_names_every_license():
    languages = {files.language for p in text_packages.TEXT_PACKAGES for files in p.files}
    assert len(languages - {"html", "css"}) >= 8 and len(text_packages.LOCALES) >= 10
    for package in text_packages.TEXT_PACKAGES:
        assert len(package.sha256) == 64 and "==" in package.package
        assert all(files.license for files in package.files)
        assert package.files or package.message_license
