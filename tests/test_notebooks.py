"""Notebooks: paired with their sources, alike where they must be, and run to their last cell."""

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

pytest.importorskip("jupytext", reason="uv run --extra notebook: no jupytext here")
pytest.importorskip("nbclient", reason="uv run --extra notebook: no nbclient here")

import jupytext
import nbclient
import notebook_pairs

SOURCES = notebook_pairs.sources()
NAMES = [path.stem for path in SOURCES]


def cells(source, kind="code"):
    return [c for c in notebook_pairs.notebook(source).cells if c.cell_type == kind]


def test_there_are_notebooks_and_nothing_unpaired():
    assert "quickstart" in NAMES
    assert [path.stem for path in sorted(notebook_pairs.FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_is_what_its_source_makes(source):
    have = source.with_suffix(".ipynb").read_text("utf-8")
    made = notebook_pairs.text(notebook_pairs.kept(source))
    assert have == made, "run python tests/notebook_pairs.py"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_shows_what_its_code_gave(source):
    """Run from its first cell to its last, in order, and nothing in it is of one machine."""
    have = source.with_suffix(".ipynb").read_text("utf-8")
    ran = notebook_pairs.code(jupytext.reads(have, fmt="ipynb"))
    assert [cell.execution_count for cell in ran] == [*range(1, len(ran) + 1)], (
        f"run python tests/notebook_pairs.py --run {source.stem}"
    )
    kinds = [output.output_type for cell in ran for output in cell.outputs]
    assert "error" not in kinds and "image/png" in have
    (board,) = ran[-1].outputs
    assert "<iframe srcdoc" in board.data["text/html"]
    found = re.findall(r"/(?:home|root|tmp|work|Users|opt|usr)/[^ \"<]*", have)
    assert not found, found


def test_outputs_go_with_the_code_that_gave_them(tmp_path):
    source = tmp_path / "a.py"
    source.write_text("# %%\n1\n\n# %% [markdown]\n# Text.\n\n# %%\n2\n\n# %%\n3\n")
    made = notebook_pairs.notebook(source)
    for place, cell in enumerate(notebook_pairs.code(made), start=1):
        cell.execution_count = place
    source.with_suffix(".ipynb").write_text(notebook_pairs.text(made))
    for edit, counts in {"Text.": [1, 2, 3], "2": [1, None, None]}.items():
        source.write_text(source.read_text().replace(edit, "Other"))
        kept = notebook_pairs.code(notebook_pairs.kept(source))
        assert [cell.execution_count for cell in kept] == counts


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
    """Runs the first cell as if in Colab, below `tmp_path`; what it has run, by what becomes of
    the versions of packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    source = cells(SOURCES[0])[0].source.replace("/content", str(tmp_path))

    def run(fits, after):
        """`fits`: whether pip can keep the jax that is there; `after`: its version in the end."""
        have, commands = {"jax": "1", "jaxlib": "1", "numpy": "2"}, []

        def command(argv, check=False):
            commands.append([str(a) for a in argv])
            if argv[0] == "git":
                (tmp_path / "isoflop").mkdir()
                (tmp_path / "isoflop/leaderboard.py").touch()
            else:
                have["jax"] = after
            return types.SimpleNamespace(returncode=0 if check or fits else 1)

        monkeypatch.setattr(subprocess, "run", command)
        monkeypatch.setattr(importlib.metadata, "version", have.get)
        names = {}
        exec(compile(source, "first cell", "exec"), names)
        return commands, names["RUNS"]

    return run


def test_colab_keeps_its_jax_where_it_can(colab, tmp_path):
    (clone, pip), runs = colab(fits=True, after="1")
    assert clone[:2] == ["git", "clone"] and clone[-1] == str(tmp_path / "isoflop")
    assert pip[-4:] == [".", "jax==1", "jaxlib==1", "numpy==2"]
    assert runs.absolute() == tmp_path / "isoflop/runs/notebooks"
    (tmp_path / "drive/MyDrive").mkdir(parents=True)  # and a clone is there by now
    (_,), runs = colab(fits=True, after="1")
    assert runs == tmp_path / "drive/MyDrive/isoflop"


def test_colab_is_told_to_restart_where_jax_had_to_be_replaced(colab):
    with pytest.raises(RuntimeError, match="restart the session"):
        colab(fits=False, after="9")


class Client(nbclient.NotebookClient):
    """Runs a notebook, with other parameters after its own, in a kernel on one CPU device."""

    def __init__(self, name, parameters):
        made = notebook_pairs.notebook(notebook_pairs.FOLDER / f"{name}.py")
        (cell,) = (c for c in made.cells if "parameters" in c.metadata.get("tags", ()))
        cell.source += "\n" + parameters
        place = {"metadata": {"path": str(notebook_pairs.FOLDER)}}
        super().__init__(made, timeout=900, kernel_name="python3", resources=place)

    def run(self):
        flags = os.environ["XLA_FLAGS"].split()
        own = " ".join(f for f in flags if "device_count" not in f)
        self.execute(env=os.environ | {"XLA_FLAGS": own})
        return self

    def shown(self):
        """All text of all outputs."""
        outputs = [o for c in self.nb.cells for o in c.get("outputs", ())]
        return "\n".join(json.dumps(o) for o in outputs)


# As small as still goes through all cells.
SMALL = {
    "add_a_mixer": "STEPS, SEEDS = 6, (0,)",
    "compare_objectives": "STEPS, SHARE = 20, 24",
    "pretrained": "STEPS, ROWS = 6, 4\nSOURCE = str(WORKDIR / 'made_here')",
    "scaling_law": "LARGEST, SHARE = 5e9, 256",
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
    """Ctrl-C during training, then the same cell again; and so to the board."""
    small = "STEPS, SEEDS, CONSOLE = 20, (0,), 'plain'"
    client = Client("quickstart", f"{small}\nWORKDIR = Path({str(tmp_path)!r})")
    (place,) = (i for i, c in enumerate(client.nb.cells) if "conduct.conduct(" in c.source)
    again = client.nb.cells[place].copy()
    again.id = "again"
    client.nb.cells.insert(place + 1, again)
    client.nb.cells[place].metadata["tags"] = ["raises-exception"]
    watch = threading.Thread(target=interrupted, args=(client, tmp_path), daemon=True)
    watch.start()
    client.run()
    watch.join()
    (error,) = (o for o in client.nb.cells[place].outputs if o.output_type == "error")
    assert error.ename == "Preempted" and "goes on from there" in error.evalue
    (first, *_) = sorted(tmp_path.glob("dense*"))
    assert json.loads((first / "status.json").read_text())["attempt"] == 2
    rows = [json.loads(row) for row in (first / "metrics.jsonl").read_text().splitlines()]
    begun = [row["step"] for row in rows if row.get("resumed")]
    assert len(begun) == 1 and 0 < begun[0] < 20
    outputs = client.nb.cells[place + 1].outputs
    lines = "".join(o.text for o in outputs if o.output_type == "stream").splitlines()
    assert lines.count(f"resume step={begun[0]}") == 1
    assert lines.count("finish step=20") == 3  # one for a run: there is one handler
    assert "<iframe srcdoc" in client.shown() and "image/png" in client.shown()


def interrupted(client, runs):
    """Do as Ctrl-C does to the kernel, once a run has logged a step."""
    until = time.monotonic() + 600
    while not [*runs.glob("*/metrics.jsonl")] and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(client.km.provisioner.process.pid, signal.SIGINT)
