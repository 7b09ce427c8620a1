"""External results: the schema of docs/results.md, the badge, and no rank."""

import json
import re
from pathlib import Path

import board_runs as runs
import pytest

from protocol.board.board import make_board
from protocol.board.html import to_html
from protocol.records.load import load_records

DOCUMENT = Path(__file__).parents[2] / "docs/results.md"


def documented():
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return json.loads(text)


def rows_of(found):
    return {row.name: row for family in found.comparable_sets for row in family.rows}


def test_the_documented_example_is_read(tmp_path):
    runs.write(tmp_path / "theirs.json", documented())
    found = make_board(*load_records([tmp_path / "theirs.json"]))
    assert not found.unreadable
    row = rows_of(found)["their model"]
    assert row.sample.values == (1.92, 1.94) and row.sample.n_diverged == 1
    assert row.costs == {"params": 124e6, "training_flops": 1.2e18}
    assert ">self-reported<" in to_html(found) and ">refutation<" in to_html(found)


def test_it_stands_beside_runs_with_its_keys_and_is_not_ranked(tmp_path):
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path / "runs", "b", [2.3, 2.31, 2.32], model={"depth": 6})
    (family,) = make_board(*load_records([tmp_path / "runs"])).comparable_sets
    result = {"name": "theirs", "metric": "test/bits_per_byte", "values": [1.0, 1.01, 1.02]}
    result |= {"keys": dict(family.keys), "study": runs.STUDY}
    theirs = {"format": 2, "source": "a paper", "results": [result]}
    runs.write(tmp_path / "theirs.json", theirs)
    found = make_board(*load_records([tmp_path / "runs", tmp_path / "theirs.json"]))
    (family,) = found.comparable_sets
    rows = rows_of(found)
    assert [rows[name].rank for name in ("a", "b", "theirs")] == [1, 2, None]
    assert rows["theirs"].exclusions == ("self-reported (a paper): it cannot be checked here",)
    assert rows["theirs"].pareto == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": 1.0}, "has the key 'value'; known: name"),
        ({"values": []}, "a list of 1 to 100"),
        ({"values": ["1"]}, "must be a number"),
        ({"name": None}, "has no name"),
        ({"metric": 3}, "must be text"),
        ({"costs": {"speed": 1}}, "has the key 'speed'"),
        ({"costs": {"params": -1}}, "must be finite and not negative"),
        ({"keys": {"lenght": "64 tokens"}}, "has the key 'lenght'"),
    ],
)
def test_a_wrong_result_is_left_out_alone(tmp_path, change, reason):
    file = documented()
    good = file["results"][0]
    file["results"] = [good | change, good]
    runs.write(tmp_path / "theirs.json", file)
    found = make_board(*load_records([tmp_path / "theirs.json"]))
    assert rows_of(found).keys() == {"their model"}
    ((name, why),) = found.unreadable
    assert name == "theirs.json#0" and reason in why


@pytest.mark.parametrize("change", [{"format": 1}, {"source": ""}, {"results": {}}, {"more": 1}])
def test_a_wrong_file_is_unreadable(tmp_path, change):
    runs.candidate(tmp_path / "runs", "a", [2.0])
    runs.write(tmp_path / "theirs.json", documented() | change)
    found = make_board(*load_records([tmp_path / "runs", tmp_path / "theirs.json"]))
    assert rows_of(found).keys() == {"a"}
    assert [item.folder for item in found.unreadable] == ["theirs.json"]
