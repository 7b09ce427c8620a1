"""The Python of other libraries, in an environment of its own, for slow tests beside them."""

import fcntl
import functools
import subprocess
import venv
from pathlib import Path

import pytest

FOLDER = Path("~/.cache/isoflop/test_peers").expanduser()
PACKAGES = ("torch", "transformers>=5", "lm-eval[hf]==0.4.13", "mteb>=2.20")
NAMES = "torch, transformers, lm-eval and mteb"
SECONDS = 900  # Time that their installation may take.


@functools.cache
def peer_python() -> str:
    """Returns a Python with torch, transformers, lm-eval and mteb, which is made at first use.

    The calling test is skipped where they cannot be had.
    """
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python = str(FOLDER / "bin/python")
        check = [python, "-c", "import torch, transformers, accelerate, lm_eval, mteb"]
        if Path(python).exists() and subprocess.run(check, capture_output=True).returncode == 0:
            return python
        install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        try:
            venv.create(FOLDER, with_pip=True)
            done = subprocess.run(install, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{NAMES} take more than {SECONDS} s to install")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"{NAMES} have no environment in {FOLDER}: {error}")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"{NAMES} cannot be installed: {reason}")
        return python
