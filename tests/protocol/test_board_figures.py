"""Pictures: figures for papers, and colors that readers with other color vision can tell apart."""

import itertools
import re
import runpy
from pathlib import Path

import board_runs as runs
import numpy as np
import pytest
from PIL import Image

import leaderboard
from protocol.board import figures
from protocol.board.board import make_board
from protocol.records.load import load_records

ROOT = Path(__file__).parents[2]
HOSTILE = "<b>$x_1$ & _y"
# From linear RGB to what protanopes and deuteranopes see (Machado, Oliveira & Fernandes 2009).
VISIONS = {
    "normal": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(code):
    c = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB."""
    x = XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", [0, 1, 2])
def test_colors_of_rows_differ_for_everybody(theme, vision):
    """A difference of 15 in CIELAB is several times what is just noticed side by side, 2.3."""
    style = figures.STYLE.read_text("utf-8")
    codes = re.findall(r"--c\d: (#[0-9a-f]{6})", style)[8 * theme : 8 * theme + 8]
    seen = [lab(VISIONS[vision] @ linear(code)) for code in codes]
    assert len(seen) == 8
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_the_picture_of_the_readme_keeps_the_colors_of_rows():
    picture = runpy.run_path(str(ROOT / "docs/picture.py"))
    fixed = picture["style_colors"](figures.STYLE)
    rows = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in figures.COLORS]
    assert len(set(rows)) == 8 and set(rows) <= set(fixed)
    # A few pixels of each color in a page that has thousands of others.
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3)).astype(np.uint8)
    for i, color in enumerate(rows):
        noise[i, :3] = color
    small = np.array(picture["reduce_colors"](Image.fromarray(noise), fixed).convert("RGB"))
    assert [tuple(small[i, 1]) for i in range(8)] == rows
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= 256


def run_folders(root):
    for name, value, size in (("beta", 2.2, 1), (HOSTILE, 2.1, 3), ("gamma", 2.0, 2)):
        values = [value, value + 0.01, value + 0.02]
        shared = {"model": {"layers": [f"{name}+mlp"]}, "params": size * 10**6}
        scores = [("test/baseline/seen/token_2", 2.3), ("test/baseline/seen/token_3", 0.1)]
        study = {"study": {"candidate": name}}
        runs.candidate(root, name.strip("<>")[:1], values, **shared, **study, scores=scores)
    return root


def test_every_chart_is_a_pdf_and_an_svg(tmp_path, capsys):
    out = tmp_path / "figures"
    assert leaderboard.main([str(run_folders(tmp_path / "runs")), f"--figures={out}"]) == 0
    charts = ["curves", "group1-results", "pareto-seconds", "pareto-state_bytes"]
    charts += ["pareto-training_flops"]
    names = [f"set1-{chart}.{kind}" for chart in charts for kind in ("pdf", "svg")]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for name in names:
        data = (out / name).read_bytes()
        assert data.startswith(b"%PDF" if name.endswith("pdf") else b"<?xml")
    assert str(out / "set1-curves.pdf") in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_the_same_board_gives_the_same_figures(tmp_path):
    board = make_board(*load_records([run_folders(tmp_path / "runs")]))
    first, second = (figures.write_figures(board, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_mean_curve_is_of_the_tokens_that_all_runs_reach():
    curves = [[(1.0, 4.0), (2.0, 3.0), (3.0, 2.0)], [(1.0, 6.0), (3.0, 4.0)], [(0.0, 1), (2.5, 1)]]
    tokens, losses = figures.mean_curve(curves)
    np.testing.assert_array_equal(tokens, [1, 2])
    np.testing.assert_allclose(losses, [[4, 3], [6, 5], [1, 1]])
