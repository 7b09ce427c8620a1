"""The documentation as a site: `sphinx-build -W docs docs/_build`."""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
os.environ["PYTHONPATH"] = str(ROOT)  # for the kernels that run the examples

import reference  # noqa: E402  (it stands beside this file)

project = "isoflop"
author = "the isoflop developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "isoflop"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # an example that fails breaks the build
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_excludepatterns = ["made/notebooks/*"]  # run by tests/project/test_notebooks.py
nb_merge_streams = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.header"]


def setup(app: object) -> None:
    """Writes the pages that are generated from the code to `docs/made`, which git ignores."""
    generated = HERE / "made"
    shutil.rmtree(generated, ignore_errors=True)
    (generated / "notebooks").mkdir(parents=True)
    (generated / "settings.md").write_text(reference.settings(), "utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, generated / "notebooks")
