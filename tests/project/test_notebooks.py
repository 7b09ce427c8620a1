"""Notebooks: they match their sources, share their common cells, and run to their last cell."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

pytest.importorskip("jupytext", reason="jupytext is missing; use `uv run --extra notebook`")
pytest.importorskip("nbclient", reason="nbclient is missing; use `uv run --extra notebook`")

import jupytext
import nbclient
import notebook_pairs

SOURCES = notebook_pairs.sources()
NAMES = [path.stem for path in SOURCES]


def cells(source, kind="code"):
    return [c for c in notebook_pairs.read_source(source).cells if c.cell_type == kind]


def test_there_are_notebooks_and_nothing_unpaired():
    assert "quickstart" in NAMES
    assert [path.stem for path in sorted(notebook_pairs.FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_is_what_its_source_makes(source):
    stored = source.with_suffix(".ipynb").read_text("utf-8")
    expected = notebook_pairs.to_text(notebook_pairs.with_stored_outputs(source))
    assert stored == expected, "run python tests/notebook_pairs.py"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_shows_what_its_code_gave(source):
    """The cells were run in their order, and no output has a path of one machine."""
    text = source.with_suffix(".ipynb").read_text("utf-8")
    code = notebook_pairs.code_cells(jupytext.reads(text, fmt="ipynb"))
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)], (
        f"run python tests/notebook_pairs.py --run {source.stem}"
    )
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds and "image/png" in text
    (board,) = code[-1].outputs
    assert "<iframe srcdoc" in board.data["text/html"]
    paths = re.findall(r"/(?:home|root|tmp|work|Users|opt|usr)/[^ \"<]*", text)
    assert not paths, paths


def test_outputs_go_with_the_code_that_gave_them(tmp_path):
    source = tmp_path / "a.py"
    source.write_text("# %%\n1\n\n# %% [markdown]\n# Text.\n\n# %%\n2\n\n# %%\n3\n")
    notebook = notebook_pairs.read_source(source)
    for count, cell in enumerate(notebook_pairs.code_cells(notebook), start=1):
        cell.execution_count = count
    source.with_suffix(".ipynb").write_text(notebook_pairs.to_text(notebook))
    for edit, counts in {"Text.": [1, 2, 3], "2": [1, None, None]}.items():
        source.write_text(source.read_text().replace(edit, "Other"))
        cells = notebook_pairs.code_cells(notebook_pairs.with_stored_outputs(source))
        assert [cell.execution_count for cell in cells] == counts


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebooks_are_alike_where_they_must_be(source):
    first, second, *_, last = cells(source)
    model = cells(SOURCES[0])
    assert first.source == model[0].source and len(first.source.splitlines()) <= 25
    assert second.metadata["tags"] == ["parameters"] and "FAST = " in second.source
    assert last.source == model[-1].source and "leaderboard.html" in last.source
    opening = cells(source, "markdown")[0].source
    assert "What was not run" in opening and "TPU" in opening


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Returns a function that runs the first cell as in Colab, with its folders in `tmp_path`.

    That function returns the commands which the cell ran, and the folder of runs.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    source = cells(SOURCES[0])[0].source.replace("/content", str(tmp_path))

    def run(fits, after):
        """Runs the cell.

        Args:
            fits: Whether pip can keep the installed jax.
            after: Version of jax after the installation.
        """
        versions, commands = {"jax": "1", "jaxlib": "1", "numpy": "2"}, []

        def command(argv, check=False):
            commands.append([str(a) for a in argv])
            if argv[0] == "git":
                (tmp_path / "isoflop").mkdir()
                (tmp_path / "isoflop/leaderboard.py").touch()
            else:
                versions["jax"] = after
            return types.SimpleNamespace(returncode=0 if check or fits else 1)

        monkeypatch.setattr(subprocess, "run", command)
        monkeypatch.setattr(importlib.metadata, "version", versions.get)
        names = {}
        exec(compile(source, "first cell", "exec"), names)
        return commands, names["RUNS"]

    return run


def test_colab_keeps_its_jax_where_it_can(colab, tmp_path):
    (clone, pip), runs = colab(fits=True, after="1")
    assert clone[:2] == ["git", "clone"] and clone[-1] == str(tmp_path / "isoflop")
    assert pip[-4:] == [".", "jax==1", "jaxlib==1", "numpy==2"]
    assert runs.absolute() == tmp_path / "isoflop/runs/notebooks"
    (tmp_path / "drive/MyDrive").mkdir(parents=True)  # The folder has a clone by this time.
    (_,), runs = colab(fits=True, after="1")
    assert runs == tmp_path / "drive/MyDrive/isoflop"


def test_colab_is_told_to_restart_where_jax_had_to_be_replaced(colab):
    with pytest.raises(RuntimeError, match="restart the session"):
        colab(fits=False, after="9")


class Client(nbclient.NotebookClient):
    """Runs a notebook in a kernel on one CPU device, with `parameters` after its parameters."""

    def __init__(self, name, parameters):
        notebook = notebook_pairs.read_source(notebook_pairs.FOLDER / f"{name}.py")
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
        cell.source += "\n" + parameters
        resources = {"metadata": {"path": str(notebook_pairs.FOLDER)}}
        super().__init__(notebook, timeout=900, kernel_name="python3", resources=resources)

    def run(self):
        flags = os.environ["XLA_FLAGS"].split()
        flags = [f for f in flags if "device_count" not in f]
        self.execute(env=os.environ | {"XLA_FLAGS": " ".join(flags)})
        return self

    def shown(self):
        """Returns the text of all outputs."""
        outputs = [o for c in self.nb.cells for o in c.get("outputs", ())]
        return "\n".join(json.dumps(o) for o in outputs)


SMALL = {  # The smallest parameters with which all cells run.
    "add_a_mixer": "STEPS, SEEDS = 6, (0,)",
    "compare_objectives": "STEPS, STRIDE = 20, 24",
    "pretrained": "STEPS, BATCH_SIZE = 6, 4\nSOURCE = str(WORKDIR / 'random_llama')",
    "scaling_law": "BUDGETS, WIDTH, DEPTH = (2e10, 4e10, 8e10), 32, 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_to_its_board(name, tmp_path):
    client = Client(name, f"WORKDIR = Path({str(tmp_path)!r})\n{SMALL[name]}").run()
    shown = client.shown()
    assert "<iframe srcdoc" in shown and "image/png" in shown
    assert (tmp_path / "board" / "leaderboard.json").is_file()


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_when_it_is_run_again(tmp_path):
    # covers P14
    """Interrupts training with Ctrl-C, runs the same cell again, and continues to the board."""
    small = "STEPS, SEEDS, CONSOLE = 20, (0,), 'plain'"
    client = Client("quickstart", f"{small}\nWORKDIR = Path({str(tmp_path)!r})")
    (position,) = (i for i, c in enumerate(client.nb.cells) if "run_all(" in c.source)
    repeated = client.nb.cells[position].copy()
    repeated.id = "repeated"
    client.nb.cells.insert(position + 1, repeated)
    client.nb.cells[position].metadata["tags"] = ["raises-exception"]
    watch = threading.Thread(target=interrupt, args=(client, tmp_path), daemon=True)
    watch.start()
    client.run()
    watch.join()
    (error,) = (o for o in client.nb.cells[position].outputs if o.output_type == "error")
    assert error.ename == "PreemptedError" and "Run the same command to resume" in error.evalue
    (first, *_) = sorted(tmp_path.glob("dense*"))
    assert json.loads((first / "status.json").read_text())["attempt"] == 2
    rows = [json.loads(row) for row in (first / "metrics.jsonl").read_text().splitlines()]
    resumed = [row["step"] for row in rows if row.get("resumed")]
    assert len(resumed) == 1 and 0 < resumed[0] < 20
    outputs = client.nb.cells[position + 1].outputs
    lines = "".join(o.text for o in outputs if o.output_type == "stream").splitlines()
    assert lines.count(f"resume step={resumed[0]}") == 1
    assert lines.count("finish step=20") == 3  # One per run, so there is one log handler.
    assert "<iframe srcdoc" in client.shown() and "image/png" in client.shown()


def interrupt(client, runs):
    """Sends the signal of Ctrl-C to the kernel after a run has logged a step."""
    deadline = time.monotonic() + 600
    while not [*runs.glob("*/metrics.jsonl")] and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(client.km.provisioner.process.pid, signal.SIGINT)
