"""Slow: mteb scores an imported encoder as it scores the same model in sentence-transformers."""

import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from peers import peer_python

from hub.run import import_as_run

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/mteb_tasks.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a folder with a plain BERT, and one whose files say how it embeds sentences."""
    root = tmp_path_factory.mktemp("mteb")
    run("make", str(root / "bert"))
    return root


def run(*argv: str) -> None:
    done = subprocess.run([peer_python(), str(SCRIPT), *argv], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["bert", "bert-cls"])
def test_mteb_scores_an_imported_encoder_as_its_own_library_does(models, name):
    folder, target = models / name, models / f"{name}-run"
    import_as_run(str(folder), target)
    run("ask", *(str(folder), str(target), sysconfig.get_path("purelib")))
    found = json.loads((folder / "scores.json").read_text())
    ours, theirs = found["ours"], found["theirs"]
    assert set(ours["scores"]) == {"Similar", "Found"}
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-6)
    assert len(set(ours["scores"].values())) == 2 and 0 < ours["scores"]["Found"] < 1
    np.testing.assert_allclose(ours["vectors"], theirs["vectors"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours["one"], theirs["one"], rtol=2e-4, atol=2e-5)
