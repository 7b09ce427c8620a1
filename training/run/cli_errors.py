"""Shared by all commands: errors as one line and an exit code, and the default run folder."""

import errno
import hashlib
import io
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from errors import DeviceMemoryError, DiskError, IsoflopError
from settings.tree import as_json
from training.distributed import multihost
from training.run.console import silence_stdout
from training.settings import Settings


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command and returns its exit code; with --debug it prints the traceback too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without some characters must not end the run with an encoding error.
            stream.reconfigure(errors="replace")
    return multihost.exit_if_failed(_run_command(command, argv))


def _run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        command(argv)
        return 0
    except BrokenPipeError:
        silence_stdout()  # the reader of a pipe, such as `| head`, has ended
        return 0
    except KeyboardInterrupt:
        print("Stopped immediately. The last checkpoint is intact.", file=sys.stderr)
        return 130
    except Exception as error:
        user_error = as_user_error(error)
        if user_error is None or any(a in ("--debug", "--debug=true") for a in argv):
            traceback.print_exc()
        if user_error is None:
            return 1
        name = type(user_error).__name__
        print(f"{multihost.host_prefix()}{name}: {user_error}", file=sys.stderr)
        return user_error.code


def as_user_error(error: Exception) -> IsoflopError | None:
    """Converts `error` to one that a user can act on; None means a defect of the program."""
    if isinstance(error, IsoflopError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return DiskError(
            f"{error.filename or 'disk'}: {error.strerror}; free some space and run the command "
            "again"
        )
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        text = str(error).splitlines()[0]
        return DeviceMemoryError(
            f"the step does not fit into the device's memory ({text}); lower train.batch_size or "
            "raise train.grad_accum_steps, set --config.model.remat=full, or use more devices; "
            "--dry_run prints the memory of each component"
        )
    return None


def resolve_workdir(flag_values: flags.FlagValues, settings: Settings) -> Path:
    """Returns --workdir, or runs/<config>-<digest of the settings and --init_from> by default.

    The same command therefore always uses the same run folder.
    """
    if flag_values.workdir:
        return Path(flag_values.workdir)
    path, _, size = (flag_values.config or "default").partition(":")
    text = json.dumps(as_json(settings), sort_keys=True) + flag_values.init_from
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path("runs") / "-".join(filter(None, (Path(path).stem, size, digest)))
