"""The first cell of the notebooks, in an environment that has a jax of its own, as Colab's has."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JAX = "0.11.2"  # between the ends of the supported versions
SECONDS = 600  # that the installation of that jax may take
SCRIPT = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
{cell}
del sys.modules["google.colab"]  # jax would ask it for displays
import jax
from eval import harness
from training import runner
print(jax.__version__, RUNS)
"""


@pytest.mark.slow
def test_the_first_cell_keeps_a_jax_that_is_there_already(tmp_path):
    """It clones and installs the project beside that jax; runs go to the mounted Drive."""
    python = tmp_path / "colab/bin/python"
    newer = _newer_python()
    if newer is None:
        pytest.skip(f"there is no Python 3.12, which jax {JAX} needs")
    subprocess.run([newer, "-m", "venv", tmp_path / "colab"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", f"jax=={JAX}"]
    if subprocess.run(install, timeout=SECONDS, capture_output=True).returncode:
        pytest.skip(f"jax {JAX} cannot be installed here")
    (tmp_path / "drive/MyDrive").mkdir(parents=True)
    repository = tmp_path / "repository"
    shutil.copytree(ROOT, repository, ignore=_is_left_out)
    for command in ("init", "add --all", "-c user.name=a -c user.email=a commit -m a"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True, capture_output=True)
    source = (ROOT / "notebooks/quickstart.py").read_text("utf-8")
    cell = source.partition("\n# %%\n")[2].partition("\n# %%")[0].replace("/content", str(tmp_path))
    cell = cell.replace('REPOSITORY = ""', f"REPOSITORY = {str(repository)!r}")
    result = subprocess.run(
        [python, "-c", SCRIPT.format(cell=cell)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [JAX, str(tmp_path / "drive/MyDrive/isoflop")]


def _is_left_out(folder: str, names: list[str]) -> list[str]:
    """Names what a clone of the project would not have."""
    hidden = [name for name in names if name.startswith(".") or name == "__pycache__"]
    return hidden + ([name for name in names if name == "runs"] if Path(folder) == ROOT else [])


def _newer_python() -> str | None:
    """Returns a Python that this jax supports; None: there is none."""
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    installed = Path("~/.pyenv/versions").expanduser().glob("3.1[2-9]*/bin/python")
    for python in [*filter(None, found), *map(str, sorted(installed))]:
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 12))"]
        if not subprocess.run(check, capture_output=True).returncode:
            return python
    return None
