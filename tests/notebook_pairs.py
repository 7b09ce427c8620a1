"""Notebooks as .ipynb, made from their sources: `python tests/notebook_pairs.py` writes them.

A source is a script in jupytext's percent format. Cells are named by their place, and there are no
versions or times. Outputs are those of `python tests/notebook_pairs.py --run NAME...`, which
executes; without it they stay as far down as no code has changed.
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
    return sorted(FOLDER.glob("*.py"))


def notebook(source: Path) -> NotebookNode:
    """`source` as a notebook without outputs."""
    made = jupytext.read(source)
    made.metadata = NotebookNode(METADATA)
    made.nbformat, made.nbformat_minor = 4, 5
    for place, cell in enumerate(made.cells):
        cell.id = f"cell-{place:02}"
    return made


def code(made: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in made.cells if cell.cell_type == "code"]


def kept(source: Path) -> NotebookNode:
    """`source` with the outputs in its .ipynb that still belong to it."""
    made, pair = notebook(source), source.with_suffix(".ipynb")
    before = code(jupytext.read(pair)) if pair.is_file() else []
    both = zip(code(made), before, strict=False)
    for now, old in itertools.takewhile(lambda both: both[0].source == both[1].source, both):
        now.outputs, now.execution_count = old.outputs, old.execution_count
    return made


def executed(source: Path) -> NotebookNode:
    """`source` with the outputs of a run in its folder: without what is said on the side (progress,
    warnings), and without the paths of this machine."""
    made, place = notebook(source), {"metadata": {"path": str(FOLDER)}}
    client = nbclient.NotebookClient(
        made, timeout=1800, kernel_name="python3", resources=place, coalesce_streams=True
    )
    client.execute()
    made.metadata = NotebookNode(METADATA)
    for cell in code(made):
        cell.metadata.pop("execution", None)
        cell.outputs = [_plain(o) for o in cell.outputs if o.get("name") != "stderr"]
    return made


def _plain(output: NotebookNode) -> NotebookNode:
    texts = output if "text" in output else output.data
    for key in texts:
        if key == "text" or key.startswith("text/"):
            texts[key] = texts[key].replace(f"{FOLDER.parent}/", "")
    return output


def text(made: NotebookNode) -> str:
    return jupytext.writes(made, fmt="ipynb").rstrip("\n") + "\n"


if __name__ == "__main__":
    asked = set(sys.argv[2:]) if sys.argv[1:2] == ["--run"] else set()
    for path in sources():
        made = executed(path) if path.stem in asked else kept(path)
        path.with_suffix(".ipynb").write_text(text(made), "utf-8")
