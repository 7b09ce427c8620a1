"""`python -m protocol.fit`: what it fits, what it says, and what it refuses."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from test_board_curves import DENSE, study

from protocol.fit import __main__ as command
from protocol.fit.points import effective_tokens
from protocol.statistics.scaling_law import ScalingLaw

# Constants near those of the points of arXiv:2407.21783.
LAW = ScalingLaw(E=0.605, A=59.0, alpha=0.31, B=156.0, beta=0.314)


def twin():
    """The rows of results/laws/twin.csv: 10 budgets of 13 sizes, noise of 3e-4."""
    rng, text = np.random.default_rng(2407), io.StringIO()
    text.write("budget,params,tokens,loss\n")
    for budget in np.geomspace(6e18, 1e22, 10):
        best = 0.13 * budget**0.49
        for n in best * np.geomspace(0.2, 5, 13):
            d = budget / 6 / n
            loss = LAW.loss(n, d) + 3e-4 * rng.normal()
            text.write(f"{budget:.6g},{n:.6g},{d:.6g},{loss:.6f}\n")
    return text.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "twin.csv"
    path.write_text(twin())
    return path


def test_the_shipped_twin_is_this_one():
    assert (command.Path(__file__).parents[2] / "results/laws/twin.csv").read_text() == twin()


def test_a_table_is_fitted_and_described(table, tmp_path, capsys):
    flags = ["--approach=1,2,surface", "--budgets=1e21,1e24", "--predict=1e9:2e10,1e12:2e13"]
    assert command.main([str(table), *flags, "--resamples=40", f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "twin.csv (sha256 " in out and "130 runs at 130 sizes" in out
    assert "not fitted: 0 curves of 2 points or more" in out
    assert "influence: without the point N = " in out
    assert out.count("optimum at 1e24 FLOPs") == 2 or out.count("optimum at 1.00e24 FLOPs") == 2
    near, far = (line for line in out.splitlines() if line.startswith("predicted"))
    assert "extrapolated" not in near and "warning: far beyond the points" in far
    (tree,) = json.loads((tmp_path / "fit.json").read_text())["reports"]
    assert tree["runs"] == [] and tree["metric"] == ""
    fit = tree["fits"]["surface"]
    for name, true in LAW._asdict().items():
        assert fit["low"][name] < true < fit["high"][name]
    low, high = tree["fits"]["2"]["exponent_interval"]
    assert low - 0.02 < LAW.beta / (LAW.alpha + LAW.beta) < high + 0.02
    assert {p.name for p in tmp_path.iterdir()} == {"fit.json"} | {
        f"fit1-{name}.{kind}" for name in ("curves", "residuals") for kind in ("pdf", "svg")
    }


def test_run_folders_are_fitted_by_candidate(tmp_path, capsys):
    study(tmp_path, "dense", DENSE)
    assert command.main([str(tmp_path), "--approach=2,surface", "--resamples=20"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# dense: 36 runs, test/bits_per_byte")
    assert "36 runs at 18 sizes" in out and "exact counts are 1 to 1 times 6 N D" in out
    (alpha,) = re.findall(r"^alpha = (\S+) ", out, re.M)
    assert float(alpha) == pytest.approx(0.3, abs=0.01) and out.count("minimum at") == 3


def test_repeated_tokens_are_worth_less():
    """Of U tokens, 4 epochs are worth 3.7 U, and endless ones 16.4 U (arXiv:2305.16264)."""
    assert effective_tokens(1e9, 1.0) == 1e9
    assert effective_tokens(4e9, 4.0) == pytest.approx(3.73e9, rel=0.01)
    assert effective_tokens(1e15, 1e6) == pytest.approx(16.39e9, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--approach=4"], "--approach=4"),
        (["--budgets=-1"], "--budgets=-1, must be a number above 0"),
        (["--predict=1e9"], "has no ':'"),
        (["--where=source=x"], "names the column 'source'"),
        (["--where=params=x"], "has no row with params=x; give another table, or"),
        (["--out="], "argument --out: it is empty, must name a file or a folder"),
        (["--sha256=abc"], "not abc; download it again"),
    ],
)
def test_a_wrong_flag_is_one_line(table, flags, message, capsys):
    assert command.main([str(table), *flags]) != 0
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_wrong_table_is_one_line(tmp_path, capsys):
    path = tmp_path / "x.csv"
    csv.field_size_limit(131_072)  # The default, which readers of long texts raise.
    for text, message in (
        ("params,tokens\n1,2\n", "has no column 'loss'"),
        ("params,tokens,loss\n", "has no row; give another table"),
        ("params,tokens,loss\n1,2,x\n", "row 1: loss is 'x', must be a number"),
        ("params,tokens,loss\n1,2,3\n-1,2,3\n", "row 2: params is '-1', must be a number above 0"),
        ("params,tokens,loss\n1,nan,3\n", "row 1: tokens is 'nan', must be a number above 0"),
        ("params,tokens,loss,epochs\n1,2,3,inf\n", "epochs is 'inf', must be a number of 0 or"),
        ('params,tokens,loss\n1,2,"' + 200_000 * "3" + '"\n', "is no table of commas"),
    ):
        path.write_text(text)
        assert command.main([str(path)]) != 0
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    rows = "\n".join(f"{n},{20 * n},{3 - math.log10(n) / 10}" for n in range(10, 20))
    path.write_text(f"params,tokens,loss\n{rows}\n")
    assert command.main([str(path), "--approach=2,surface"]) == 0
    out = capsys.readouterr().out
    assert "not fitted: isoFLOP points need the budget" in out
    assert "not fitted: log N and log D of the points spread infinitely many times" in out
