"""The project's errors: each has an exit code, and its message states the value and a way out.

The commands print an `IsoflopError` as one line and exit with its code. The traceback is written to
the run's `error.log`; `--debug` prints it too. The codes follow sysexits where one fits: 65 data,
70 internal error, 73 cannot create, 74 input or output, 75 temporary failure (Slurm can requeue a
job that exits with 75).

Every command loads this file first, so it also names the systems that the project runs on, and lets
Ctrl-C end a command while it is loaded. A KeyboardInterrupt would print a traceback through the
imports, and be lost if it came in a callback of the garbage collector, of which JAX has one.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType

try:
    import fcntl  # noqa: F401
except ImportError:  # files are locked and replaced as POSIX systems do it
    raise SystemExit("isoflop runs on Linux and macOS; on Windows, run it in WSL 2") from None


def stop_loading(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process by one line while modules are imported, and else raises a KeyboardInterrupt.

    `settings.command.run_command` takes over from this handler.

    Raises:
        KeyboardInterrupt: if no import is running.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"Stopped.\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def is_own_command(main_file: Path, root: Path, environment: Path) -> bool:
    """Whether the process runs a file of the project, and not one of its environment (pytest)."""
    folders = main_file.resolve().parents
    return root.resolve() in folders and environment.resolve() not in folders


if (
    is_own_command(
        Path(vars(sys.modules["__main__"]).get("__file__") or "/"),
        Path(__file__).parent,
        Path(sys.prefix),
    )
    and not multiprocessing.parent_process()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, stop_loading)


class IsoflopError(Exception):
    """Base class of all errors that a user can act on; `code` is the exit status of the command."""

    code = 1


class ConfigError(IsoflopError):
    """A setting is unknown, has the wrong type, is out of range or contradicts another setting."""

    code = 2


class DataError(IsoflopError):
    """Text, tokens or a tokenizer cannot be used as they are."""

    code = 65


class CheckpointError(IsoflopError):
    """A checkpoint is damaged, or has another model, another run or another format."""

    code = 66


class NonFiniteError(IsoflopError):
    """The loss or a gradient is not finite; no update of that step was applied."""

    code = 70


class HangError(IsoflopError):
    """No step ended within the time that the watchdog allows."""

    code = 71


class LockedError(IsoflopError):
    """Another live process owns the run folder."""

    code = 73


class DiskError(IsoflopError):
    """The disk is full, read-only or has failed; everything saved before is intact."""

    code = 74


class PreemptedError(IsoflopError):
    """A signal stopped the run; its state is saved, and the same command resumes it."""

    code = 75


class DistributedError(IsoflopError):
    """Hosts cannot find each other, disagree, or one of them has died."""

    code = 76


class DeviceMemoryError(IsoflopError):
    """A step or its data do not fit into the memory of the device or of the host."""

    code = 77
