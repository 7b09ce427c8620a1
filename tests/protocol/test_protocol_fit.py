"""`python -m protocol.fit`: what it fits, what it says, and what it refuses."""

import csv
import io
import json
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
    assert re.search(r"extrapolated \S+x in N or D, 100x in 6 N D", out)  # 1e24 of 1e22 FLOPs.
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
    assert "mathdefault" not in "".join(p.read_text("utf-8") for p in tmp_path.glob("*.svg"))


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
        (["--resamples=10001"], "--resamples=10001, must be at most 10000"),
        (["--approach="], "--approach names none; known: 1, 2, 3, surface"),
        (["--where=params=x"], "has no row with params=x; give another table, or"),
        (["--out="], "argument --out: it is empty, must name a file or a folder"),
        (["--sha256=abc"], "not abc; download it again"),
    ],
)
def test_a_wrong_flag_is_one_line(table, flags, message, capsys):
    assert command.main([str(table), *flags]) != 0
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


HEADER = "params,tokens,loss"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params,tokens\n1,2\n", "has no column 'loss' among ['params', 'tokens']"),
        ("params;tokens;loss\n1;2;3,5\n", "params, tokens and loss, separated by commas"),
        (f"{HEADER}\n", "has no row; give another table"),
        (f"{HEADER}\n1,2,x\n", "line 2: loss is 'x', must be a number above 0"),
        (f"{HEADER}\n7B,2,3\n", "line 2: params is '7B', must be a number above 0; write a numb"),
        (f"{HEADER}\n1,2,3\n\n-1,2,3\n", "line 4: params is '-1', must be a number above 0"),
        (f"{HEADER}\n1,nan,3\n", "line 2: tokens is 'nan', must be a number above 0"),
        (f"{HEADER},epochs\n1,2,3,0\n", "line 2: epochs is '0', must be a number above 0"),
        (f"{HEADER},budget\n1,2,3,inf\n", "budget is 'inf', must be a number of 0 or more"),
        (f"{HEADER},run\n1,2,3,a\n", "run is 'a', must be a whole number of 0 or more"),
        (f"{HEADER},before_cooldown\n1,2,3,2\n", "before_cooldown is '2', must be 0 or 1"),
        (f"{HEADER}\n1,000,000,2,3\n", "line 2 has 5 cells, must have 3 as its header"),
        (f"{HEADER}\n1,2\n", "line 2 has 2 cells, must have 3"),
        (f"{HEADER},loss\n1,2,3,4\n", "has the columns 'loss', 'loss', must have one for loss"),
        ("params,N,tokens,loss\n1,2,3,4\n", "has the columns 'params', 'N', must have one for p"),
        (f'{HEADER}\n1,2,"3\n', "line 2, is no table of commas (unexpected end of data)"),
        (f'{HEADER}\n1,2,"{"3" * 200_000}"\n', "line 2, is no table of commas (field larger"),
        (f"{HEADER}\n" + "1,2,3\n" * 20_001, "has 20001 rows, at most 20000 are fitted"),
    ],
)
def test_a_wrong_table_is_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "x.csv"
    csv.field_size_limit(131_072)  # The default, which readers of long texts raise.
    path.write_text(text)
    assert command.main([str(path)]) == 65
    err = capsys.readouterr().err
    assert f"{path}" in err and message in err and err.count("\n") == 1


def test_tables_of_other_programs_are_read(tmp_path, capsys):
    rows = [(n, d, LAW.loss(n, d)) for n in (1e6, 3e6, 9e6) for d in (1e8, 3e8, 1e9)]
    lines = ["Note, params ,tokens,loss", *(f'"a\nb", {n:g} ,{d:.0f},{x}' for n, d, x in rows)]
    for name, newline, start in (("a.csv", "\r\n", "\ufeff"), ("B.CSV", "\r", "")):
        (tmp_path / name).write_bytes((start + newline.join([*lines, lines[1], ""])).encode())
        assert command.main([str(tmp_path / name), "--approach=surface", "--resamples=2"]) == 0
        out = capsys.readouterr().out
        assert "alpha = 0.31 " in out and "10 rows, of which 1 repeat an earlier row" in out
    (tmp_path / "utf16.csv").write_bytes("params".encode("utf-16"))
    (tmp_path / "x.txt").write_text("params")
    for names, message in (
        (("utf16.csv",), "utf16.csv is not UTF-8 from byte 0 on; save the table as CSV in UTF-8"),
        (("x.txt",), "give run folders, or one file of points whose name ends in .csv"),
        (("a.csv", "B.CSV"), "a.csv is a file among 2 results; give run folders, or one file of"),
    ):
        assert command.main([str(tmp_path / name) for name in names]) != 0
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def write_grid(path, loss, header="budget,params,tokens,loss", end=""):
    """Writes seven sizes at each of four budgets; `loss` is a function of N and D."""
    rng, lines = np.random.default_rng(0), [header]
    for budget in np.geomspace(1e18, 1e20, 4):
        for n in 0.1 * budget**0.5 * np.geomspace(0.2, 5, 7):
            d = budget / 6 / n
            lines.append(f"{budget},{n},{d},{loss(n, d) + 1e-3 * rng.normal()}{end}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda n, d: 2 + (n / 1e10) ** 0.2, "A of the fit is 0: the loss of the points does not"),
        (lambda n, d: 3 - (1e8 / d) ** 0.2, "B of the fit is 0: the loss of the points does not"),
        (
            lambda n, d: 2 + (1e8 / n) ** 5 + (1e9 / d) ** 5,
            "alpha of the fit is 3, at the bound of 0.01 to 3",
        ),
    ],
)
def test_losses_of_no_law_are_not_fitted(loss, message, tmp_path, capsys):
    write_grid(tmp_path / "x.csv", loss)
    assert command.main([str(tmp_path / "x.csv"), "--approach=surface", "--budgets=1e21"]) == 65
    out, err = capsys.readouterr()
    assert f"not fitted: {message}" in out and "nothing was fitted" in err


def test_a_resample_without_an_optimum_widens_the_interval(tmp_path, capsys):
    """Tokens hardly matter here, so that B of some resamples is 0 and their optimal N infinite."""
    write_grid(tmp_path / "x.csv", lambda n, d: 2 + 400 / n**0.34 + 1e-3 * (1e9 / d) ** 0.3)
    flags = ["--approach=surface", "--budgets=1e21", "--resamples=60", f"--out={tmp_path / 'o'}"]
    assert command.main([str(tmp_path / "x.csv"), *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"N \S+ \(95 %: \S+ to inf\)", out)
    assert "warning: the interval of beta reaches a bound of the search (0.01 to 3)" in out
    (report,) = json.loads((tmp_path / "o/fit.json").read_text())["reports"]
    assert len(report["influences"]) == 28


def test_files_are_written_though_the_reader_of_a_pipe_has_ended(table, tmp_path, monkeypatch):
    """As with `| head -1`; the exit code is 0, so that the files must be there."""

    def broken(*args, **flags):
        raise BrokenPipeError

    monkeypatch.setattr("protocol.fit.__main__.print", broken, raising=False)
    monkeypatch.setattr("settings.command.silence_stdout", lambda: None)
    flags = ["--approach=2", "--resamples=2", f"--out={tmp_path}"]
    assert command.main([str(table), *flags]) == 0
    assert (tmp_path / "fit.json").exists()


def test_equal_losses_and_points_of_many_epochs_are_not_fitted(tmp_path, capsys):
    path = tmp_path / "x.csv"
    for header, text, message in (
        ("params,tokens,loss", "2.5", "all 16 points have the loss 2.5, a law needs losses that"),
        ("params,tokens,loss,epochs", "2.5,9", "no point remains to be fitted; give points of at"),
    ):
        rows = [f"{n},{d},{text}" for n in (1e6, 2e6, 4e6, 8e6) for d in (1e8, 2e8, 3e8, 9e8)]
        path.write_text("\n".join([header, *rows]))
        assert command.main([str(path), "--approach=3,surface"]) == 65
        out, err = capsys.readouterr()
        assert message in out and err.count("\n") == 1


def test_budgets_without_a_parabola_are_left_out_and_named(tmp_path, capsys):
    path = tmp_path / "x.csv"
    write_grid(path, LAW.loss)
    text = path.read_text()
    path.write_text(text + "3e20,1e9,5e10,0.9\n,1e9,6e10,0.9\n")
    assert command.main([str(path), "--approach=2", "--resamples=2"]) == 0
    out = capsys.readouterr().out
    assert "2 resamples; warning: an interval of 95 % needs 40 or more" in out
    assert "left out: budget 3.00e20 has 1 sizes, a parabola needs 5 or more" in out
    assert "left out: 1 of 30 points have no budget" in out and "from 4 budgets" in out
    path.write_text("\n".join(text.splitlines()[:8]))
    assert command.main([str(path), "--approach=2,surface"]) == 65
    out = capsys.readouterr().out
    assert "bootstrap with 200 resamples\n" in out
    assert "1 of 1 budgets have their minimum inside" in out and "train at more budgets" in out
    assert "minimum at 1.00e18 FLOPs: N " in out and "7 points of 7 sizes" in out


def test_points_that_are_left_out_have_an_influence_too(tmp_path, capsys):
    """The loss after 9 epochs is that of few tokens: with it, the optimum is elsewhere."""
    path = tmp_path / "x.csv"
    write_grid(path, LAW.loss, "budget,params,tokens,loss,epochs", ",1")
    path.write_text(path.read_text() + "1e20,1e9,1.7e10,0.99,9\n")
    assert command.main([str(path), "--approach=surface", "--resamples=2"]) == 0
    out = capsys.readouterr().out
    assert "repetition: 1 points beyond 4 epochs are left out" in out
    assert re.search(
        r"influence: with the left out point N = 1G, D = 17G, the optimal N .* is", out
    )


def test_unequal_numbers_of_seeds_are_said_where_sizes_scatter(tmp_path, capsys):
    rng, path = np.random.default_rng(2), tmp_path / "x.csv"
    write_grid(path, lambda n, d: LAW.loss(n, d) + 0.01 * rng.normal())
    header, *rows = path.read_text().splitlines()
    for n_seeds, is_said in ((1, True), (28, False)):
        seeds = [row[:-6] + f"{k}00000" for row in rows[:n_seeds] for k in (1, 9)]
        path.write_text("\n".join([header, *rows, *seeds]))
        assert command.main([str(path), "--approach=surface", "--resamples=2"]) == 0
        assert ("warning: sizes have 1 to 3 seeds" in capsys.readouterr().out) == is_said
