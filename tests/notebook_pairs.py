"""Notebooks as .ipynb, made from their sources: `python tests/notebook_pairs.py` writes them.

A source is a script in jupytext's percent format. Cell ids are the positions of the cells, and the
files hold no versions or times. `python tests/notebook_pairs.py --run NAME...` executes notebooks
and stores their outputs. Without `--run`, a notebook keeps its outputs up to the first cell whose
code has changed.
"""

import itertools
import sys
from pathlib import Path

import jupytext
import nbclient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
METADATA = {
    "accelerator": "TPU",
    "colab": {"gpuType": "V5E1", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """Returns the paths of all notebook sources."""
    return sorted(FOLDER.glob("*.py"))


def read_source(source: Path) -> NotebookNode:
    """Returns the notebook of a source, without outputs."""
    notebook = jupytext.read(source)
    notebook.metadata = NotebookNode(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:02}"
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Returns the cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_stored_outputs(source: Path) -> NotebookNode:
    """Returns the notebook of a source with those outputs of its .ipynb that are still valid."""
    notebook, pair = read_source(source), source.with_suffix(".ipynb")
    stored_cells = code_cells(jupytext.read(pair)) if pair.is_file() else []
    pairs = zip(code_cells(notebook), stored_cells, strict=False)
    for cell, stored in itertools.takewhile(lambda pair: pair[0].source == pair[1].source, pairs):
        cell.outputs, cell.execution_count = stored.outputs, stored.execution_count
    return notebook


def execute(source: Path) -> NotebookNode:
    """Runs the notebook of a source in its folder and returns it with its outputs.

    The outputs exclude stderr (progress bars, warnings) and the paths of this machine.
    """
    notebook, resources = read_source(source), {"metadata": {"path": str(FOLDER)}}
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources=resources, coalesce_streams=True
    )
    client.execute()
    notebook.metadata = NotebookNode(METADATA)
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        cell.outputs = [_relative_paths(o) for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def _relative_paths(output: NotebookNode) -> NotebookNode:
    texts = output if "text" in output else output.data
    for key in texts:
        if key == "text" or key.startswith("text/"):
            texts[key] = texts[key].replace(f"{FOLDER.parent}/", "")
    return output


def to_text(notebook: NotebookNode) -> str:
    """Returns the notebook as the text of an .ipynb file."""
    return jupytext.writes(notebook, fmt="ipynb").rstrip("\n") + "\n"


if __name__ == "__main__":
    requested = set(sys.argv[2:]) if sys.argv[1:2] == ["--run"] else set()
    for path in sources():
        notebook = execute(path) if path.stem in requested else with_stored_outputs(path)
        path.with_suffix(".ipynb").write_text(to_text(notebook), "utf-8")
