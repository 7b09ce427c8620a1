"""Names of rows of runs without a study, and what makes runs different rows."""

import board_runs

from protocol.board.board import make_board
from protocol.board.sentences import summarize_group
from protocol.records.load import load_records


def rows_of(root) -> list[str]:
    return sorted(
        row.name
        for s in make_board(*load_records([root])).comparable_sets
        for g in s.groups
        for row in g.rows
    )


def ad_hoc(root, folder: str, **changes) -> None:
    board_runs.run(root / folder, "dense", study={"candidate": ""}, **changes)


def test_runs_of_one_config_have_the_settings_or_the_folder_in_their_names(tmp_path):
    ad_hoc(tmp_path / "few", "a", model={"width": 64})
    ad_hoc(tmp_path / "few", "b", model={"width": 96})
    assert rows_of(tmp_path / "few") == ["dense:tiny width=64", "dense:tiny width=96"]
    many = {"width": 64, "depth": 2, "mlp": {"width": 9, "gated": False}}
    ad_hoc(tmp_path / "many", "wide")
    ad_hoc(tmp_path / "many", "narrow", model=many)
    assert rows_of(tmp_path / "many") == ["dense:tiny (narrow)", "dense:tiny (wide)"]


def test_a_run_json_as_config_is_named_by_its_folder(tmp_path):
    folder = board_runs.run(tmp_path / "x", "dense", study={"candidate": ""})
    text = (folder / "run.json").read_text().replace("configs/dense.py:tiny", "runs/mine/run.json")
    (folder / "run.json").write_text(text)
    assert rows_of(tmp_path) == ["mine"]


def test_microbatches_make_another_row_where_they_make_another_loss(tmp_path):
    moe = {"layers": ["attention+moe"], "moe": {"balance_loss": 0.01}}
    for parts in (1, 4):
        train = {"grad_accum_steps": parts, "steps": 100, "batch_size": 4, "seq_len": 64}
        ad_hoc(tmp_path / "moe", f"m{parts}", seed=parts, model=moe, train=train)
        free = moe | {"moe": {"balance_loss": 0.0}}
        ad_hoc(tmp_path / "free", f"f{parts}", seed=parts, model=free, train=train)
    assert rows_of(tmp_path / "moe") == [
        "dense:tiny grad_accum_steps=1",
        "dense:tiny grad_accum_steps=4",
    ]
    assert rows_of(tmp_path / "free") == ["dense:tiny"]


def test_microbatches_are_no_difference_where_only_one_row_depends_on_them(tmp_path):
    moe = {"layers": ["attention+moe"], "moe": {"balance_loss": 0.01}}
    board_runs.candidate(tmp_path, "dense", (2.0, 2.1))
    board_runs.candidate(tmp_path, "moe", (1.9, 1.8), model=moe)
    (comparable,) = make_board(*load_records([tmp_path])).comparable_sets
    text = summarize_group(comparable.groups[0], comparable).differences
    assert "model.moe" in text and "grad_accum_steps" not in text
