"""Baselines on the board: rows, lines, and no rank for a candidate that is not below a bigram."""

import json

import board_runs as runs
import pytest
from rich.console import Console

from protocol.board import export
from protocol.board.baselines import Baseline, below_bigram, group_baselines, shown_baselines
from protocol.board.board import make_board
from protocol.records.load import load_records

PREFIX = "test/baseline/"
BIGRAM = 2.5


def scores(bigram=BIGRAM):
    values = {"seen/token_1": 3.5, "seen/token_2": bigram, "seen/token_3": 2.0, "seen/byte_1": 3.0}
    values |= {"split/gzip": 2.8, "split/xz": 2.4, "train/token_2": 2.3}
    return [(PREFIX + name, value) for name, value in values.items()]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Three candidates below their bigram table, and one at it."""
    root = tmp_path_factory.mktemp("runs")
    for name, value in (("low", 2.2), ("middle", 2.3), ("high", 2.4), ("none", BIGRAM)):
        for seed in range(3):
            shared = {"model": {"layers": [f"{name}+mlp"]}, "scores": scores(BIGRAM - 0.01 * seed)}
            runs.run(root / f"{name}-{seed}", name, seed, value + 0.001 * seed, **shared)
    return make_board(*load_records([root]))


def test_a_candidate_not_below_the_bigram_of_the_text_it_saw_has_no_rank(board):
    (group,) = board.comparable_sets[0].groups
    ranked = {row.name: row.is_ranked for row in group.rows}
    assert ranked == {"low": True, "middle": True, "high": True, "none": False}
    (problem,) = group.rows[-1].problems
    assert problem == (
        "its mean of 2.5010 is not below 2.4900, which a bigram table of the text that it saw "
        "reaches"
    )
    assert any("none: its mean of 2.5010" in text for text in group.problems)
    claims = [v for v in group.verdicts if v.winner() and "none" not in (v.a.name, v.b.name)]
    assert {v.n_comparisons for v in claims} == {3}  # the pairs of the three others


def test_baselines_are_rows_of_every_format(board):
    html, markdown = export.to_html(board), export.to_markdown(board)
    console = Console(record=True, width=200)
    export.print_board(board, console)
    for text in (html, markdown, console.export_text()):
        assert "bigram of the text seen" in text and "2.4800 to 2.5000" not in text
        assert (
            "xz -9e of the split alone" in text and "gzip -9 of the" not in text.split("All 7")[0]
        )
    assert "All 7 baselines" in html
    tree = export.to_json_tree(board)["comparable_sets"][0]["groups"][0]
    assert tree["baselines"]["seen/token_2"] == pytest.approx([2.49, 2.49])
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    lines = data["comparable_sets"][0]["groups"][0]["baselines"]
    assert [line["label"] for line in lines] == [
        "bigram of the text seen",
        "trigram of the text seen",
    ]


def test_baselines_belong_to_the_split_and_the_unit_of_the_metric():
    table = {f"{PREFIX}seen/token_2": 2.5, "valid/baseline/seen/token_2": 9.0, "test/other": 1.0}
    assert group_baselines([table], "test/bits_per_byte") == [Baseline("seen/token_2", 2.5, 2.5)]
    assert group_baselines([table], "test/accuracy") == []
    assert below_bigram(table, "test/bits_per_byte", 2.49)
    assert below_bigram(table, "test/bits_per_byte", 2.5) is False
    assert below_bigram(table, "test/accuracy", 0.3) is None
    assert below_bigram({}, "test/bits_per_byte", 2.5) is None


def test_rows_that_saw_other_text_have_a_range_of_baselines():
    tables = [{f"{PREFIX}seen/token_2": value} for value in (2.5, 2.6)]
    (bigram,) = group_baselines(tables, "test/bits_per_byte")
    assert bigram.text == "2.5000 to 2.6000" and bigram.mean == pytest.approx(2.55)
    assert shown_baselines([bigram]) == [bigram]
