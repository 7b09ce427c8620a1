"""The documentation as a site: it builds without a warning, and it describes every setting."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from settings.descriptions import field_descriptions
from settings.tree import flatten
from training.settings import Settings

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return load("reference")


def test_the_page_of_mixers_is_that_of_the_code():
    assert (ROOT / "docs/mixers.md").read_text("utf-8") == load("mixers").render(), (
        "run docs/mixers.py"
    )


def test_the_page_of_systems_is_that_of_the_presets():
    """Every reference checkpoint that it names is there, and so is every family of presets."""
    systems = load("systems")
    assert (ROOT / "docs/systems.md").read_text("utf-8") == systems.render(), "run docs/systems.py"
    for system in systems.SYSTEMS:
        folder = ROOT / "tests/goldens" / ("vision" if system.name.startswith("LLaVA") else "hf")
        assert all((ROOT / folder / name).is_dir() for name in system.goldens)
        assert (ROOT / "configs" / systems.config_file(system)[0]).is_file()


def test_the_map_has_a_line_for_every_file():
    page = load("map").render()
    assert (ROOT / "docs/map.md").read_text("utf-8") == page, "run docs/map.py"
    folders = {path.parent for path in map(Path, re.findall(r"^- `([^`]+)`:", page, re.M))}
    files = {file for folder in folders - {Path()} for file in (ROOT / folder).glob("*.py")}
    assert len(files) > 200
    for file in files:
        assert file.name[:2] == "__" or f"`{file.relative_to(ROOT).as_posix()}`" in page


def missing_definitions(page):
    """The files that a page names and that are not there, and what its diagrams miss in a file."""
    for name in re.findall(r"[\w/]+\.py\b", page):
        if not (ROOT / name).is_file():
            yield name
    for name, definition in re.findall(r"^ *([\w/]+\.py) +(\w+)", page, re.M):
        if not re.search(rf"^ *(def|class) {definition}\b", (ROOT / name).read_text("utf-8"), re.M):
            yield f"{name}: {definition}"


def test_the_paths_through_the_code_are_there():
    assert not list(missing_definitions((ROOT / "docs/code.md").read_text("utf-8")))
    page = "`arch/no.py`\n  train.py  gone()  text\n  train.py   run()\n"
    assert list(missing_definitions(page)) == ["arch/no.py", "train.py: gone"]


def test_every_setting_has_a_row_with_its_meaning(reference):
    rows = [line.split(" | ") for line in reference.settings().splitlines() if line[:3] == "| `"]
    meanings = {row[0].strip("| `"): row[-1].strip(" |") for row in rows}
    assert set(meanings) >= set(flatten(Settings()))
    assert all(meanings.values())
    assert meanings["train.batch_size"] == "Rows per step, over all devices (B)."
    assert len(rows) == len(meanings)


def test_a_meaning_is_the_comment_of_its_field(tmp_path, monkeypatch):
    source = """
from settings.types import config

@config
class Colors:
    red: int = 1  # Share of red.
    # Share of green.
    green: int = 2
    blue: int = 3
    # A comment of several
    # lines.
    black: int = 4
"""
    (tmp_path / "colors_with_comments.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    colors = importlib.import_module("colors_with_comments").Colors
    assert field_descriptions(colors) == {
        "red": "Share of red.",
        "green": "Share of green.",
        "blue": "",
        "black": "A comment of several lines.",
    }


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("furo") is None, reason="needs `uv run --group docs pytest -m slow`"
)
def test_the_site_builds_and_its_examples_run(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    page = (tmp_path / "protocol.html").read_text()
    assert "mamba2 has lower bits per byte than dense, by 0.076" in page  # what the example printed
    assert (
        "--config.train.batch_size" not in page
        and "train.batch_size" in (tmp_path / "made/settings.html").read_text()
    )
