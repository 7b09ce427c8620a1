"""Commands end with one line and an exit code, whatever stops them."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from errors import ConfigError, is_own_command, stop_loading
from settings.command import run_command
from settings.flag_parser import make_parser
from storage.scratch import local_copy, local_path


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("x is 3"), 2, "ConfigError: x is 3\n"),
        (PermissionError(13, "Permission denied", "/a"), 74, "DiskError: /a: Permission denied; g"),
        (OSError(5, "Input/output error"), 74, "DiskError: a file that was given: Input/output"),
        (OSError(28, "No space left on device", "/b"), 74, "/b: No space left on device; free"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
        (MemoryError(), 77, "DeviceMemoryError: the memory of this machine does not suffice"),
        (BrokenPipeError(), 0, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_cause_is_one_line(error, code, line, capsys, monkeypatch):
    monkeypatch.setattr("settings.command.silence_stdout", lambda: None)

    def command(argv):
        raise error

    assert run_command(command, []) == code
    said = capsys.readouterr().err
    assert line in said and said.count("\n") <= 1 and "Traceback" not in said


def test_a_reader_that_ends_early_is_no_failure(monkeypatch):
    """Rich exits with 1 where its output is a closed pipe; another exit stays what it is."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed_pipe:
        monkeypatch.setattr("sys.stdout", closed_pipe)
        assert run_command(lambda argv: Console().print("x" * 10_000), []) == 0
        with pytest.raises(SystemExit, match="3"):
            run_command(lambda argv: sys.exit(3), [])
        monkeypatch.undo()


def test_a_full_output_is_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run_command(lambda argv: print("x"), []) == 74
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert capsys.readouterr().err == (
        "DiskError: the disk or the output: No space left on device; free some space and run the "
        "command again\n"
    )


def test_a_defect_and_debug_print_the_traceback(capsys):
    def command(argv):
        raise ConfigError("x") if argv else AssertionError("defect")

    assert run_command(command, []) == 1
    assert "AssertionError: defect" in capsys.readouterr().err
    assert run_command(command, ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert run_command(lambda argv: 65, []) == 65


def test_an_interrupt_in_the_garbage_collector_is_not_lost(capsys):
    def collected(phase, info):
        if phase == "start" and not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGINT)

    def command(argv):
        gc.collect()
        assert sent
        time.sleep(5)

    sent = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored in the background.
    gc.callbacks.append(collected)
    try:
        assert run_command(command, []) == 130
    finally:
        gc.callbacks.remove(collected)
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "Stopped.\n"


def test_an_interrupt_after_the_imports_is_a_keyboard_interrupt(tmp_path):
    """A script of the project, or of its environment, that is no command keeps its clean-up."""
    with pytest.raises(KeyboardInterrupt):
        stop_loading(signal.SIGINT, sys._getframe())
    root, environment = tmp_path, tmp_path / ".venv"
    assert is_own_command(root / "train.py", root, environment)
    assert not is_own_command(environment / "bin/pytest", root, environment)
    assert not is_own_command(Path("/elsewhere/script.py"), root, environment)


@pytest.mark.slow
def test_an_interrupt_while_a_command_is_loaded_is_one_line(tmp_path):
    """The interrupt comes while the command imports numpy."""
    (tmp_path / "numpy.py").write_text("import signal\nsignal.raise_signal(2)")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "leaderboard.py"), "runs"]
    path = os.pathsep.join([str(tmp_path), str(root)])
    ended = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.stderr, ended.returncode) == ("Stopped.\n", 130)


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = make_parser("x", "")
    parser.add_argument("--run", type=Path)
    assert parser.parse_args(["--run=~/runs/a"]).run == tmp_path / "runs/a"
    assert local_path("~/runs/a") == local_copy("~/runs/a") == tmp_path / "runs/a"
    with pytest.raises(ConfigError, match="a flag is '~nosuchuser/x': there is no such user"):
        parser.parse_args(["--run=~nosuchuser/x"])


def test_an_unknown_flag_has_the_nearest_name_in_one_line():
    parser = make_parser("x", "Does something.")
    parser.add_argument("--temperature", type=float, help="softmax temperature")
    with pytest.raises(ConfigError, match="--temprature=1; did you mean '--temperature'"):
        parser.parse_args(["--temprature=1"])
    parser.add_argument("--run", required=True, help="run folder")
    with pytest.raises(ConfigError, match="unrecognized arguments: --rnu; did you mean '--run'"):
        parser.parse_args(["--rnu=x"])
    with pytest.raises(ConfigError) as error:
        parser.parse_args(["--temperature", "a\n" * 5000])
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
