"""Notebooks as .ipynb, made from their sources: `python tests/notebook_pairs.py` writes them.

A source is a script in jupytext's percent format. The same source gives the same bytes: no outputs,
no versions, cells named by their place.
"""

from pathlib import Path

import jupytext
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


def text(source: Path) -> str:
    """What the .ipynb beside `source` must hold."""
    return jupytext.writes(notebook(source), fmt="ipynb").rstrip("\n") + "\n"


if __name__ == "__main__":
    for path in sources():
        path.with_suffix(".ipynb").write_text(text(path), "utf-8")
