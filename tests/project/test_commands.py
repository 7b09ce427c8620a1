"""The commands and flags that the documents show are ones that the project has."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import compare
import generate
import leaderboard
import preflight
import train
from configs import grid
from data import fetch
from data.prepare import __main__ as prepare
from errors import ConfigError
from eval import __main__ as evaluate
from eval import harness
from eval.capability import __main__ as capability
from hub import __main__ as hub_command
from settings.cli import parse_args
from settings.tree import flatten
from training.settings import Settings

ROOT = Path(__file__).parents[2]
# Settings are defined beside the code that reads them, so --help loads the parts of a model, their
# operations and the objectives. It loads no task, no family, no source of data and no part of the
# training loop.
MAX_MODULES_OF_HELP = 155
NOT_FOR_HELP = ("eval", "hub", "protocol", "training.runner", "training.loop", "training.step")
NOT_FOR_HELP += ("data.open_stores", "data.sources.documents", "training.checkpoint.manager")
NOT_FOR_HELP += ("orbax", "grain", "scipy", "tokenizers", "matplotlib")
COUNT_MODULES = """
import contextlib, io, json, runpy, sys
sys.argv = ["train.py", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_path("train.py", run_name="__main__")
print(json.dumps({name: getattr(m, "__file__", None) for name, m in sys.modules.items()}))
"""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "made"} & {*page.parts}]
MINE = "configs/compare/mine.py"  # written by the reader
NAMED = ("running_mean", "goldfish", "sure")  # by the reader (tests/project/test_recipes.py)
PROGRAMS = {
    "train.py": train.define_flags,
    "compare.py": compare.define_flags,
    "preflight.py": preflight.define_flags,
}
# Commands without settings, by their words, and the parsers of their flags.
PARSERS = {
    ("generate.py",): generate.parse_args,
    ("leaderboard.py",): leaderboard.parse_args,
    ("-m", "eval"): evaluate.parse_args,
    ("-m", "hub"): hub_command.parse_args,
}
# Every command, and a part of its --help that no other flag has.
HELP = {
    "train": (train.run, "--resume"),
    "compare": (compare.run, "--stage"),
    "preflight": (preflight.run, "--topology"),
    "leaderboard": (leaderboard.run, "--verify"),
    "generate": (generate.run, "--top_p"),
    "eval": (evaluate.run, "--tasks"),
    "eval.capability": (capability.run, "--candidates"),
    "hub": (hub_command.run, "export RUN DST"),
    "data.fetch": (fetch.run, "--wheel"),
    "data.prepare": (prepare.run, "--out"),
    "configs.grid": (grid.run, "configs.grid"),
}


@pytest.mark.parametrize("name", HELP)
def test_help_gives_a_meaning_to_every_flag(name, capsys):
    command, part = HELP[name]
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert part in said
    lines = said.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        flag = re.match(r" {2}(?:-h, )?(--[\w.]+)(?:[ =]\S+)?", line)
        if flag and not line.startswith("   "):  # argparse puts the meaning of a long flag below
            meaning = line[flag.end() :].strip() or (after.startswith("    ") and after.strip())
            assert meaning and not meaning.startswith("("), line


def shown_lines(words):
    """Command lines of a command without settings in all pages, as arguments."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                split = shlex.split(line, comments=True)
                for i in range(len(split)):
                    if tuple(split[i : i + len(words)]) == words:
                        yield split[i + len(words) :]


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_a_command_without_settings_that_is_shown_is_accepted(words):
    lines = [*shown_lines(words)]
    assert lines
    for arguments in lines:
        if "--help" not in arguments:
            PARSERS[words](arguments)


def shown(page):
    """Commands in blocks of shell, as words."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word in PROGRAMS:
                    yield word, words[i + 1 :]


COMMANDS = sorted({(word, *rest) for page in PAGES for word, rest in shown(page)})


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        ("train.py", "--num_processes=-3", "num_processes=-3: -3 is not a non-negative integer"),
        ("train.py", "--process_id=-2", "process_id=-2: -2 is not integer >= -1"),
        ("compare.py", "--run_index=-5", "run_index=-5: -5 is not integer >= -1"),
        ("leaderboard.py", "--rerun=-1", "--rerun is -1, must be >= 0"),
    ],
)
def test_a_number_below_the_least_is_refused(program, flag, message):
    """What stands for "not given" is the least number, so no other one is ignored."""
    with pytest.raises(ConfigError, match=message):
        if program in PROGRAMS:
            parse_args([flag], Settings, PROGRAMS[program])
        else:
            PARSERS[program,]([flag, "runs"])


def test_there_are_commands():
    assert len(COMMANDS) > 20 and {command[0] for command in COMMANDS} == {*PROGRAMS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_that_is_shown_is_accepted(command):
    program, *rest = command
    if any(name in word for word in rest for name in NAMED) or "--help" in rest:
        return
    rest = [word.replace(MINE, "configs/compare/quickstart.py") for word in rest]
    rest = [word for word in rest if not word.startswith("--run_index=$")]
    made = parse_args(rest, Settings, PROGRAMS[program])
    harness.resolve_tasks(made.settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_setting_that_is_named_is_one(page):
    known = {*flatten(Settings())}
    sections = {key.rpartition(".")[0] for key in known} | {""}
    for key in re.findall(r"--config\.([a-z][\w.@]*)", page.read_text("utf-8")):
        key = key.rstrip(".")
        if key.split(".")[0] not in NAMED and key not in ("section.key", "section.key.value"):
            assert key in known or key in sections, key


@pytest.mark.slow
def test_help_loads_few_modules():
    process = subprocess.run(
        [sys.executable, "-c", COUNT_MODULES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name: Path(file or "/") for name, file in json.loads(process.stdout).items()}
    assert not {*NOT_FOR_HELP} & {*files}
    inside = {name for name, file in files.items() if file.is_relative_to(ROOT)}
    modules = {name for name in inside if "site-packages" not in files[name].parts}
    assert "training.settings" in modules and len(modules) <= MAX_MODULES_OF_HELP, sorted(modules)
