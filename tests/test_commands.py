"""The commands and flags that the documents show are ones that the project has."""

import re
import shlex
from pathlib import Path

import pytest

import compare
import preflight
import train
from eval import harness
from training.flags import parse
from training.settings import Settings
from training.tree import leaves

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "made"} & {*page.parts}]
MINE = "configs/compare/mine.py"  # written by the reader
NAMED = ("running_mean", "goldfish", "sure")  # by the reader (tests/test_recipes.py)
PROGRAMS = {
    "train.py": train.declare,
    "compare.py": compare.declare,
    "preflight.py": preflight.declare,
}


def shown(page):
    """Commands in blocks of shell, as words."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word in PROGRAMS:
                    yield word, words[i + 1 :]


COMMANDS = sorted({(word, *rest) for page in PAGES for word, rest in shown(page)})


def test_there_are_commands():
    assert len(COMMANDS) > 20 and {command[0] for command in COMMANDS} == {*PROGRAMS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_that_is_shown_is_accepted(command):
    program, *rest = command
    if any(name in word for word in rest for name in NAMED) or "--help" in rest:
        return
    rest = [word.replace(MINE, "configs/compare/quickstart.py") for word in rest]
    rest = [word for word in rest if not word.startswith("--index=$")]
    made = parse(rest, Settings, PROGRAMS[program])
    harness.chosen(made.settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_setting_that_is_named_is_one(page):
    known = {*leaves(Settings())}
    sections = {key.rpartition(".")[0] for key in known} | {""}
    for key in re.findall(r"--config\.([a-z][\w.@]*)", page.read_text("utf-8")):
        key = key.rstrip(".")
        if key.split(".")[0] not in NAMED and key not in ("section.key", "section.key.value"):
            assert key in known or key in sections, key
