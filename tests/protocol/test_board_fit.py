"""The board shows the laws of a fit.json that is of its runs, and refuses others in one line."""

import json
import shutil

import board_runs
import pytest
from test_board_curves import DENSE, study

import leaderboard
from errors import DataError
from protocol.board import export
from protocol.board.board import make_board
from protocol.board.fitted_laws import add_fits
from protocol.fit import __main__ as command
from protocol.records.load import load_records


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Run folders of one isoFLOP study and the fit of its runs."""
    root = tmp_path_factory.mktemp("laws")
    study(root / "runs", "dense", DENSE)
    flags = ["--approach=2,3,surface", "--resamples=8", "--budgets=1e13", f"--out={root / 'fit'}"]
    assert command.main([str(root / "runs"), *flags]) == 0
    return root


def board_of(runs, fit):
    return add_fits(make_board(*load_records([runs])), fit)


def test_the_board_shows_the_laws_of_its_runs(fitted, capsys):
    path = fitted / "fit" / "fit.json"
    (report,) = json.loads(path.read_text())["reports"]
    board = board_of(fitted / "runs", path)
    assert board.fit_problems == ()
    tree = json.loads(json.dumps(export.to_json_tree(board), allow_nan=False))
    laws = tree["comparable_sets"][0]["laws"]
    assert [law["approach"] for law in laws] == ["2", "3", "surface"]
    for law in laws[1:]:
        fit = report["fits"][law["approach"]]
        for name, (value, low, high) in law["constants"].items():
            assert [value, low, high] == [fit[key][name] for key in ("law", "low", "high")]
        (optimum,) = law["optima"]
        assert optimum["params"] == fit["optima"][0]["params"] and optimum["budget"] == 1e13
        assert 6 * optimum["params"] * optimum["tokens"] == pytest.approx(1e13)
    page, text = export.to_html(board), export.to_markdown(board)
    for document in (page, text.replace("\\", "")):
        assert (
            "dense, by the surface through 36 runs: L = E + A/N^alpha + B/D^beta, E = " in document
        )
        assert (
            "at 1.00e13 FLOPs N " in document
            and "These laws are those of fit.json (sha256 " in document
        )
    argv = [str(fitted / "runs"), f"--fit={path}", f"--out={fitted / 'board'}"]
    assert leaderboard.main(argv) == 0
    published = fitted / "board" / "leaderboard.json"
    capsys.readouterr()
    assert leaderboard.main([*argv[:2], f"--verify={published}"]) == 0
    assert "every row matches" in capsys.readouterr().out
    assert leaderboard.main([argv[0], f"--verify={published}"]) == 65


def test_a_fit_of_other_or_changed_runs_is_refused(fitted, tmp_path):
    path = fitted / "fit" / "fit.json"

    def problem(change):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(fitted / "runs", tmp_path / "runs")
        change(tmp_path / "runs")
        board = board_of(tmp_path / "runs", path)
        assert all(not s.laws for s in board.comparable_sets)
        (text,) = board.fit_problems
        assert text in export.to_html(board).replace("&#39;", "'") and "\n" not in text
        return text

    def edit(runs):
        log = runs / "dense-0-0-0" / "events.jsonl"
        log.write_text(log.read_text() + '{"event": "note", "step": 1}\n')

    assert "dense-0-0-0, whose files have changed since; fit again" in problem(edit)
    removed = problem(lambda runs: shutil.rmtree(runs / "dense-0-0-0"))
    assert "uses runs/dense-0-0-0, which this board does not have or count" in removed


def test_a_fit_of_a_table_and_a_damaged_file_are_refused(fitted, tmp_path):
    runs, path = fitted / "runs", fitted / "fit" / "fit.json"
    top = json.loads(path.read_text())
    for used, message in (
        (top["reports"][0]["runs"][1:], "lacks 1 run of the candidate, such as runs/dense-0-0-0"),
        ([], "the fit of dense is of a file and not of run folders"),
    ):
        top["reports"][0]["runs"] = used
        (tmp_path / "fit.json").write_text(json.dumps(top))
        (text,) = board_of(runs, tmp_path / "fit.json").fit_problems
        assert message in text
    top = json.loads(path.read_text())
    del top["reports"][0]["fits"]["surface"]["low"]["E"]
    for text, message in (
        (json.dumps(top), "low has no E; fit again"),
        ('{"format": 7}', "has format 7 and 0 reports"),
        ("[", "is damaged"),
    ):
        (tmp_path / "fit.json").write_text(text)
        with pytest.raises(DataError, match=message):
            board_of(runs, tmp_path / "fit.json")
    with pytest.raises(DataError, match="does not exist; give the fit.json"):
        board_of(runs, tmp_path / "none.json")


def test_a_hostile_fit_is_escaped(fitted, tmp_path):
    top = json.loads((fitted / "fit" / "fit.json").read_text())
    top["reports"][0]["name"] = "<script>alert(1)</script>"
    top["reports"][0]["fits"]["2"]["problem"] = "<img src=x onerror=alert(2)>"
    (tmp_path / "fit.json").write_text(json.dumps(top))
    board = board_of(fitted / "runs", tmp_path / "fit.json")
    page = export.to_html(board)
    assert "<script>alert(1)" not in page and "<img src=x" not in page


def test_runs_that_contradict_their_files_are_not_fitted(tmp_path, capsys):
    study(tmp_path, "dense", DENSE)
    path = tmp_path / "dense-0-0-0" / "eval" / "3200" / "bits_per_byte.json"
    record = json.loads(path.read_text())
    record["scores"].append({"name": "test/nats_per_token", "value": 9.0, "weight": 1})
    path.write_text(json.dumps(record))
    assert command.main([str(tmp_path), "--approach=surface", "--resamples=8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# dense: 35 runs") and "dense-0-0-0: its test/bits_per_byte is" in out


def test_candidates_on_other_text_have_a_fit_of_their_own(tmp_path, capsys):
    """Losses on two texts are no points of one law."""
    for name, values in (("a", (2.0, 2.1)), ("b", (1.0, 1.1))):
        board_runs.candidate(tmp_path / name, "dense", values, data=name, cost={"note": name})
    for path in (tmp_path / "b").glob("*/run.json"):
        run = json.loads(path.read_text())
        run["fingerprints"]["tokenizer"] = "8" * 64
        path.write_text(json.dumps(run))
    assert command.main([str(tmp_path), "--approach=surface"]) == 65
    assert capsys.readouterr().out.count("# dense: 2 runs, test/bits_per_byte") == 2


def test_a_board_is_written_though_the_reader_of_a_pipe_has_ended(fitted, tmp_path, monkeypatch):
    def broken(*args, **flags):
        raise BrokenPipeError

    monkeypatch.setattr(export, "print_board", broken)
    monkeypatch.setattr("settings.command.silence_stdout", lambda: None)
    assert leaderboard.main([str(fitted / "runs"), f"--out={tmp_path}"]) == 0
    assert (tmp_path / "leaderboard.html").exists()
