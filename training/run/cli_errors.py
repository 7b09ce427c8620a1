"""Shared by all commands: errors as one line and an exit code, and the default run folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from errors import ConfigError, DeviceMemoryError, IsoflopError
from settings import command as commands
from settings.tree import as_json
from storage.scratch import local_path
from training import hardware
from training.distributed import multihost
from training.run.run_paths import validate_run_path
from training.settings import Settings


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command and returns its exit code; with --debug it prints the traceback too."""
    hardware.ignore_absent_tpu()
    code = commands.run_command(
        command,
        argv,
        convert_error=as_user_error,
        prefix=multihost.host_prefix,
        interrupted="Stopped immediately. The last checkpoint is intact.",
    )
    return multihost.exit_if_failed(code)


def as_user_error(error: Exception) -> IsoflopError | None:
    """Converts `error` to one that a user can act on; None means a defect of the program."""
    if hardware.is_out_of_memory(error):
        text = str(error).splitlines()[0]
        return DeviceMemoryError(
            f"the step does not fit into the device's memory ({text}); lower train.batch_size or "
            "raise train.grad_accum_steps, set --config.model.remat=full, or use more devices; "
            "--dry_run prints the memory of each component"
        )
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        text = " ".join(str(error).split())[:300]
        return ConfigError(
            f"JAX_PLATFORMS={jax.config.values['jax_platforms']}: {text}; unset it to use the "
            "devices that this machine has"
        )
    return commands.as_user_error(error)


def resolve_workdir(flag_values: flags.FlagValues, settings: Settings) -> Path:
    """Returns --workdir, or runs/<config>-<digest of the settings and --init_from> by default.

    The same command therefore always uses the same run folder. A URL has a scratch folder.
    """
    if flag_values.workdir:
        return validate_run_path(local_path(flag_values.workdir))
    path, _, size = (flag_values.config or "default").partition(":")
    text = json.dumps(as_json(settings), sort_keys=True) + flag_values.init_from
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path("runs") / "-".join(filter(None, (Path(path).stem, size, digest)))
