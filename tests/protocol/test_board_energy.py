"""Energy and CO2 on the board: measured, estimated, or not known."""

import board_runs
import pytest

from protocol.board.board import make_board
from protocol.board.sentences import summarize_group
from protocol.records.load import load_records

VALUES = (2.0, 2.01, 2.02)


def group_of(root):
    board = make_board(*load_records([root]))
    return board.comparable_sets[0], board.comparable_sets[0].groups[0]


def test_measured_and_estimated_energy_are_told_apart(tmp_path):
    board_runs.candidate(
        *(tmp_path, "dense", VALUES),
        row={"step_joules": 36.0},
        energy="processors measured by RAPL",
        log={"co2_grams_per_kwh": 500.0},
    )
    board_runs.candidate(
        *(tmp_path, "moe", (1.9, 1.91, 1.92)),
        row={"estimated_step_joules": 72.0},
        energy="2 processor cores estimated at 6.75 W each",
        log={"co2_grams_per_kwh": 500.0},
    )
    comparable_set, group = group_of(tmp_path)
    rows = {row.name: row for row in group.rows}
    # 100 steps of 36 J are 3.6 kJ, a thousandth of a kWh.
    assert rows["dense"].costs["joules"] == 3600 and "estimated_joules" not in rows["dense"].costs
    assert rows["dense"].costs["co2_grams"] == pytest.approx(0.5)
    assert rows["moe"].costs["estimated_joules"] == 7200 and "joules" not in rows["moe"].costs
    assert rows["dense"].costs["study_joules"] == pytest.approx(3 * 3600)
    assert ", 10.8 kJ (" in rows["dense"].study_cost
    assert ", an estimated 21.6 kJ (" in rows["moe"].study_cost
    costs = " ".join(summarize_group(group, comparable_set).costs)
    assert "Energy is an estimate in part or as a whole (2 processor cores estimated" in costs
    assert "CO2 is 500 g per kWh." in costs


def test_a_run_that_is_measured_in_part_is_an_estimate(tmp_path):
    folder = board_runs.run(tmp_path / "a", row={"step_joules": 10.0})
    log = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(
        log.replace('"step_joules"', '"estimated_step_joules"', 1)
    )
    (record,) = load_records([tmp_path])[0]
    assert record.costs["estimated_joules"] == 1000 and "joules" not in record.costs
    assert "co2_grams" not in record.costs  # The settings of an older run state no factor.


def test_runs_without_energy_have_no_sentence_and_no_column(tmp_path):
    board_runs.candidate(tmp_path, "dense", VALUES)
    board_runs.candidate(tmp_path, "moe", VALUES)
    comparable_set, group = group_of(tmp_path)
    assert not any("joules" in key or key == "co2_grams" for key in group.rows[0].costs)
    assert "nergy" not in " ".join(summarize_group(group, comparable_set).costs)


def test_rows_are_matched_by_the_flops_of_a_generated_token(tmp_path):
    study = {"axis": "decode", "value": 2e6}
    for name, flops in (("dense", 2e6), ("mamba2", 2.01e6), ("moe", 3e6)):
        board_runs.candidate(
            *(tmp_path, name, [board_runs.FLOPS / 3e6 + x for x in (0.0, 0.01, 0.02)]),
            model={"layers": [f"{name}+mlp"]},
            cost={"decode_flops": flops},
            study=study,
        )
    comparable_set, _ = group_of(tmp_path)
    rows = {row.name: row for row in comparable_set.rows}
    assert not rows["dense"].exclusions and not rows["mamba2"].exclusions
    assert rows["moe"].exclusions == ("its decode is 3.00e6, 1.5 times the declared 2.00e6",)
    assert rows["dense"].costs["decode_flops"] == 2e6
