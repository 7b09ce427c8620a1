"""The folder of compiled programs that all runs of a user share, so that none compiles twice."""

import logging
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

LOG = logging.getLogger(__name__)
_FOLDERS_SET: set[str | None] = {None}  # values that this module gave to jax


def use_compile_cache(folder: str) -> None:
    """Lets this process read and write compiled programs in `folder`; "" means no cache.

    A folder that cannot be written, or that another user owns, is passed over with a warning,
    because a program from it would run with the rights of this user. Several CPU devices in one
    process use no cache: their programs wait for each other in collectives, and programs that are
    read back can wait for ever (seen with jax 0.10). A folder that jax has from elsewhere, such as
    the variable JAX_COMPILATION_CACHE_DIR, takes precedence over `folder`.
    """
    current = jax.config.values["jax_compilation_cache_dir"]
    if current not in _FOLDERS_SET:
        return
    try:
        path = Path(folder).expanduser() if folder else None
    except RuntimeError:  # In a container, a user may have no entry and no HOME.
        LOG.warning("no compilation cache in %s: no home folder; set train.compile_cache", folder)
        path = None
    devices = jax.local_devices()
    if devices[0].platform == "cpu" and len(devices) > 1:
        path = None
    if path and (problem := _find_problem(path)):
        LOG.warning("no compilation cache in %s: %s; set train.compile_cache", path, problem)
        path = None
    value = str(path) if path else None
    _FOLDERS_SET.add(value)
    if value != current:
        jax.config.update("jax_compilation_cache_dir", value)
        compilation_cache.reset_cache()  # otherwise a process keeps its first cache folder


def _find_problem(path: Path) -> str:
    """Why the folder is no cache of this user; "" if it is one, in which case it exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        owner = path.stat().st_uid
    except OSError as error:
        return error.strerror or type(error).__name__
    if hasattr(os, "getuid") and owner != os.getuid():
        return "another user owns it"
    return "" if os.access(path, os.W_OK | os.X_OK) else "it cannot be written"
