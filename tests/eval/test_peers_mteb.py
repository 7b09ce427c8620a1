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


def test_mteb_scores_an_imported_encoder_as_its_own_library_does(tmp_path):
    def run(*argv: str) -> None:
        done = subprocess.run([peer_python(), str(SCRIPT), *argv], capture_output=True, text=True)
        assert not done.returncode, done.stderr[-2000:]

    run("make", str(tmp_path / "bert"))
    import_as_run(str(tmp_path / "bert"), tmp_path / "run")
    run("ask", *(str(tmp_path / "bert"), str(tmp_path / "run"), sysconfig.get_path("purelib")))
    found = json.loads((tmp_path / "bert/scores.json").read_text())
    ours, theirs = found["ours"], found["theirs"]
    assert set(ours["scores"]) == {"Similar", "Found"}
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-6)
    assert len(set(ours["scores"].values())) == 2 and 0 < ours["scores"]["Found"] < 1
    np.testing.assert_allclose(ours["vectors"], theirs["vectors"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours["one"], theirs["one"], rtol=2e-4, atol=2e-5)
