"""The documentation as a site: it builds without a warning, its examples run, no setting is left
out."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from training.settings import Settings
from training.tree import leaves

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_has_a_row_with_its_meaning(reference):
    rows = [line.split(" | ") for line in reference.settings().splitlines() if line[:3] == "| `"]
    meanings = {row[0].strip("| `"): row[-1].strip(" |") for row in rows}
    assert set(meanings) >= set(leaves(Settings()))
    assert all(meanings.values())
    assert meanings["train.batch"] == "rows of a step, over all devices"
    assert len(rows) == len(meanings)


def test_a_setting_without_a_meaning_is_an_error(reference):
    with pytest.raises(KeyError, match="train.colour has no comment beside it"):
        reference.plain("train.colour")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("furo") is None, reason="needs `uv run --group docs pytest -m slow`"
)
def test_the_site_builds_and_its_examples_run(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "protocol.html").read_text()
    assert "mamba2 is lower than dense by .076" in page  # what the example printed
    assert (
        "--config.train.batch" not in page
        and "train.batch" in (tmp_path / "made/settings.html").read_text()
    )
