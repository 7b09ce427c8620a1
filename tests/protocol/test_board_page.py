"""The page: what differs in few words, a table that fits, and all training curves."""

import re

import board_runs as runs
import pytest

from formatting import format_bytes
from protocol.board import export, html
from protocol.board.board import make_board
from protocol.board.columns import COLUMNS
from protocol.records.load import load_records


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two candidates with different parts, and one of another tokenizer's family."""
    root = tmp_path_factory.mktemp("runs")
    moe = {"layers": ["attention+moe"], "moe": {"width": 64, "top_k": 2}}
    runs.candidate(root, "dense", [2.0, 2.01, 2.02])
    runs.candidate(root, "moe", [1.9, 1.91, 1.92], model=moe, params=2_000_000)
    longer = {"train": {"seq_len": 32}}
    runs.candidate(root, "short", [2.0, 2.01, 2.02], **longer)
    return make_board(*load_records([root]))


def test_a_part_that_only_some_rows_have_is_one_entry(board):
    group = board.comparable_sets[0].groups[0]
    tree = export.to_json_tree(board)["comparable_sets"][0]["groups"][0]
    assert {row.name for row in group.rows} == {"dense", "moe"}
    differences = tree["summary"]["differences"]
    assert "model.moe (only of moe)" in differences and "model.moe.top_k" not in differences
    assert "model.mlp (only of dense)" in differences and "model.layers" in differences


def test_the_table_shows_some_costs_and_a_button_shows_all(board):
    page = export.to_html(board)
    headings = re.findall(
        r'<th scope="col" aria-sort="none"( class="extra")?><button[^>]*>([^<]+)', page
    )
    extra = {label for is_extra, label in headings if is_extra}
    shown = {label for is_extra, label in headings if not is_extra}
    main = {COLUMNS[key].label for key in html.TABLE_COLUMNS}
    assert extra and not extra & main
    assert shown <= main | {"rank", "candidate", "bits per byte on test", "diverged/n"} | {
        *("same data", "Pareto")
    }
    assert page.count(">All columns</button>") == 2
    assert set(html.TABLE_COLUMNS) <= set(COLUMNS)


def test_a_board_of_several_sets_draws_all_training_curves(board, tmp_path):
    assert "data-all-curves" in export.to_html(board).partition("<script")[0]
    runs.candidate(tmp_path, "dense", [2.0, 2.01])
    one = make_board(*load_records([tmp_path]))
    assert "data-all-curves" not in export.to_html(one).partition("<script")[0]


@pytest.mark.parametrize(
    ("count", "text"), [(1020 << 20, "1020 MiB"), (999 << 20, "999 MiB"), (1 << 30, "1 GiB")]
)
def test_sizes_just_below_a_unit_have_no_exponent(count, text):
    assert format_bytes(count) == text
