"""The Python of other libraries, in an environment of its own, for slow tests beside them."""

import fcntl
import functools
import subprocess
import time
import venv
from pathlib import Path

import pytest

FOLDER = Path("~/.cache/isoflop/test_peers").expanduser()
PACKAGES = ("torch", "transformers>=5", "lm-eval[hf]==0.4.13", "mteb>=2.20")
NAMES = "torch, transformers, lm-eval and mteb"
SECONDS = 420  # Time that their installation may take.
RETRY_SECONDS = 3600  # Time for which a failed installation is not tried again.


def peer_python() -> str:
    """Returns a Python with torch, transformers, lm-eval and mteb, which is made at first use.

    The calling test is skipped where they cannot be had.
    """
    python, reason = _find_or_install()
    if reason:
        pytest.skip(reason)
    return python


@functools.cache
def _find_or_install() -> tuple[str, str]:
    """Returns the Python, and why there is none; "" if there is."""
    python, failure = str(FOLDER / "bin/python"), Path(f"{FOLDER}.failed")
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check = [python, "-c", "import torch, transformers, accelerate, lm_eval, mteb"]
        if Path(python).exists() and subprocess.run(check, capture_output=True).returncode == 0:
            return python, ""
        if failure.exists() and time.time() - failure.stat().st_mtime < RETRY_SECONDS:
            return "", failure.read_text()
        reason = _install(python)
        if reason:
            failure.write_text(reason)
    return python, reason


def _install(python: str) -> str:
    """Makes the environment, and returns why it could not be made; "" if it is there."""
    command = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
    try:
        venv.create(FOLDER, with_pip=True)
        pip = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"{NAMES} take more than {SECONDS} s to install"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{NAMES} have no environment in {FOLDER}: {error}"
    if pip.returncode:
        lines = pip.stderr.strip().splitlines() or ["pip failed"]
        return f"{NAMES} cannot be installed: {lines[-1]}"
    return ""
