"""What all commands share: errors as one line and an exit code, run folders by default name."""

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
from training import distributed
from training.console import unheard
from training.flags import as_json
from training.settings import Settings


def guarded(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; the exit code. With --debug the traceback is printed too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows few letters is no error
    return distributed.left(_guarded(command, argv))


def _guarded(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        command(argv)
        return 0
    except BrokenPipeError:
        unheard()  # as after `| head`: who read it has seen enough
        return 0
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is intact", file=sys.stderr)
        return 130
    except Exception as error:
        known = typed(error)
        if known is None or any(a in ("--debug", "--debug=true") for a in argv):
            traceback.print_exc()
        if known is None:
            return 1
        print(f"{distributed.speaker()}{type(known).__name__}: {known}", file=sys.stderr)
        return known.code


def typed(error: Exception) -> IsoflopError | None:
    """`error` as one that a user can act on, or None for a defect of the program."""
    if isinstance(error, IsoflopError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return DiskError(f"{error.filename or 'disk'}: {error.strerror}; free some space and rerun")
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        text = str(error).splitlines()[0]
        return DeviceMemoryError(
            f"the step does not fit the device ({text}); lower train.batch or raise "
            "train.accumulate, set --config.model.remat=full, or use more devices; --dry_run "
            "shows what takes how much"
        )
    return None


def workdir(values: flags.FlagValues, settings: Settings) -> Path:
    """The --workdir, or runs/<config>-<digest of the settings and --init_from>: the same command,
    the same run."""
    if values.workdir:
        return Path(values.workdir)
    path, _, size = (values.config or "default").partition(":")
    text = json.dumps(as_json(settings), sort_keys=True) + values.init_from
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path("runs") / "-".join(filter(None, (Path(path).stem, size, digest)))
