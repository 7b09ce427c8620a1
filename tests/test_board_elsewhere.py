"""Results from elsewhere: the schema of docs/results.md, the badge, and no rank."""

import json
import re
from pathlib import Path

import board_runs as runs
import pytest

from protocol.board import board
from protocol.collect import collect
from protocol.page import page

DOCUMENT = Path(__file__).parents[1] / "docs/results.md"


def documented():
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return json.loads(text)


def rows_of(found):
    return {row.name: row for family in found.families for row in family.rows}


def test_the_documented_example_is_read(tmp_path):
    runs.write(tmp_path / "theirs.json", documented())
    found = board(*collect([tmp_path / "theirs.json"]))
    assert not found.unreadable
    row = rows_of(found)["their model"]
    assert row.sample.values == (1.92, 1.94) and row.sample.diverged == 1
    assert row.amounts == {"params": 124e6, "training_flops": 1.2e18}
    assert ">self-reported<" in page(found) and ">refutation<" in page(found)


def test_it_stands_beside_runs_with_its_keys_and_is_not_ranked(tmp_path):
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path / "runs", "b", [2.3, 2.31, 2.32], model={"depth": 6})
    (family,) = board(*collect([tmp_path / "runs"])).families
    result = {"name": "theirs", "metric": "test/bits_per_byte", "values": [1.0, 1.01, 1.02]}
    result |= {"keys": dict(family.keys), "study": runs.STUDY}
    theirs = {"format": 1, "source": "a paper", "results": [result]}
    runs.write(tmp_path / "theirs.json", theirs)
    found = board(*collect([tmp_path / "runs", tmp_path / "theirs.json"]))
    (family,) = found.families
    rows = rows_of(found)
    assert [rows[name].rank for name in ("a", "b", "theirs")] == [1, 2, None]
    assert rows["theirs"].barred == ("self-reported (a paper): nothing here can check it",)
    assert rows["theirs"].fronts == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": 1.0}, "has the key 'value'; known: name"),
        ({"values": []}, "a list of 1 to 100"),
        ({"values": ["1"]}, "must be a number"),
        ({"name": None}, "has no name"),
        ({"metric": 3}, "must be text"),
        ({"amounts": {"speed": 1}}, "has the key 'speed'"),
        ({"amounts": {"params": -1}}, "must be finite and not negative"),
        ({"keys": {"lenght": "64 tokens"}}, "has the key 'lenght'"),
    ],
)
def test_a_wrong_result_is_left_out_alone(tmp_path, change, reason):
    file = documented()
    good = file["results"][0]
    file["results"] = [good | change, good]
    runs.write(tmp_path / "theirs.json", file)
    found = board(*collect([tmp_path / "theirs.json"]))
    assert rows_of(found).keys() == {"their model"}
    ((name, why),) = found.unreadable
    assert name == "theirs.json#0" and reason in why


@pytest.mark.parametrize("change", [{"format": 2}, {"source": ""}, {"results": {}}, {"more": 1}])
def test_a_wrong_file_is_unreadable(tmp_path, change):
    runs.candidate(tmp_path / "runs", "a", [2.0])
    runs.write(tmp_path / "theirs.json", documented() | change)
    found = board(*collect([tmp_path / "runs", tmp_path / "theirs.json"]))
    assert rows_of(found).keys() == {"a"}
    assert [item.folder for item in found.unreadable] == ["theirs.json"]
