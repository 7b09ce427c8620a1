"""Runs a command: errors become one line and an exit code, on any terminal; jax is not needed."""

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from errors import ConfigError, DeviceMemoryError, DiskError, IsoflopError, stop_loading

DEBUG_FLAGS = ("--debug", "--debug=true")


def as_user_error(error: Exception) -> IsoflopError | None:
    """Converts `error` to one that a user can act on; None means a defect of the program."""
    if isinstance(error, IsoflopError):
        return error
    if isinstance(error, MemoryError):
        text = str(error) or "an allocation failed"
        return DeviceMemoryError(
            f"the memory of this machine does not suffice ({text}); make the model, the batch or "
            "the input smaller"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return DiskError(
            f"{error.filename or 'the disk or the output'}: {error.strerror}; free some space and "
            "run the command again"
        )
    if isinstance(error, OSError) and error.errno is not None:
        file = error.filename or "a file that was given"
        return DiskError(f"{file}: {error.strerror}; give another path, or its rights")
    return None


def run_command(
    command: Callable[[Sequence[str]], int | None],
    argv: Sequence[str],
    *,
    convert_error: Callable[[Exception], IsoflopError | None] = as_user_error,
    prefix: Callable[[], str] = str,
    interrupted: str = "Stopped.",
) -> int:
    """Runs a command and returns its exit code; with --debug it prints the traceback too.

    Args:
        command: the command; it returns its exit code, or None for 0.
        argv: its arguments, without the name of the program.
        convert_error: converts an error to one that a user can act on.
        prefix: returns the text before the line of an error.
        interrupted: the line that is printed after Ctrl-C.

    Raises:
        SystemExit: as the command raises it, for example after --help.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without some characters must not end the run with an encoding error.
            stream.reconfigure(errors="replace")
    try:
        _take_interrupts()
        _check_encoding(argv)
        code = command(argv) or 0
        sys.stdout.flush()  # A full disk or a closed pipe shows here, not at the exit of Python.
        return code
    except BrokenPipeError:
        silence_stdout()  # the reader of a pipe, such as `| head`, has ended
        return 0
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        silence_stdout()  # rich turns a closed pipe into an exit with 1
        return 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception as error:
        user_error = convert_error(error)
        if user_error is None or any(argument in DEBUG_FLAGS for argument in argv):
            traceback.print_exc()
        if user_error is None:
            return 1
        print(f"{prefix()}{type(user_error).__name__}: {user_error}", file=sys.stderr)
        return user_error.code


@dataclasses.dataclass(frozen=True)
class InterruptSender:
    """A hook for exceptions that nothing can catch; it sends a KeyboardInterrupt once more.

    Python drops what is raised in `__del__` and in callbacks of the garbage collector, of which JAX
    has one, so that Ctrl-C would be lost there.
    """

    previous: Callable[..., object]

    def __call__(self, event: "sys.UnraisableHookArgs") -> None:
        """Sends the signal, or passes the event on."""
        if issubclass(event.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            self.previous(event)


def _take_interrupts() -> None:
    """Lets Ctrl-C raise a KeyboardInterrupt from now on, and not end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is stop_loading:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hook: object = sys.unraisablehook
    while not isinstance(hook, InterruptSender) and hasattr(hook, "previous"):
        hook = hook.previous
    if not isinstance(hook, InterruptSender):
        sys.unraisablehook = InterruptSender(sys.unraisablehook)


def _check_encoding(argv: Sequence[str]) -> None:
    """Checks that the arguments are text, which the files of a run can hold.

    Raises:
        ConfigError: if one has bytes that are not UTF-8.
    """
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise ConfigError(f"{shown} is not UTF-8; use another name or value") from None


def silence_stdout() -> None:
    """Discards all later output to stdout, including what Python flushes at its exit."""
    with contextlib.suppress(OSError, ValueError):  # a notebook's stdout has no descriptor
        null_file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_file, sys.stdout.fileno())
        os.close(null_file)
