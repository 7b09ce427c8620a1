"""What a run folder may hold without harm: the board survives it, says why, and keeps the others.

covers S1, S2, S4, S5, S6, S7, S8
"""

import copy
import csv
import html.parser
import io
import json
import os

import board_runs as runs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from protocol.board import export
from protocol.board.board import make_board
from protocol.board.html import to_html
from protocol.records.load import load_records

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "a|b\n| c | `x` [y](javascript:alert(1))",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b]0;title\x07[bold]",
    "../../../etc/passwd",
    "\u202egnp.exe\u2066",
    "nul\x00byte" + "x" * 300,
    "-rf --no-preserve-root",
    "<!--",
    "\ud800",
)


def rows_of(found):
    return [row for family in found.comparable_sets for row in family.rows]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text(tmp_path, name):
    runs.candidate(tmp_path / "runs", "good", [2.0, 2.1, 2.2])
    study = {"candidate": name, "refutes": name}
    scores = [(f"probe/{name}", 0.5)]
    more = {"model": {"layers": [name]}, "study": study, "scores": scores}
    for seed in range(3):
        place = "b" + name[:60].translate({0: None, ord("/"): None, 0xD800: None}) + f" {seed}"
        folder = runs.run(tmp_path / "runs" / place, "bad", seed, 2.5 + seed / 100, **more)
        record = json.loads((folder / "run.json").read_text())
        record["command"] = ["train.py", name]
        runs.write(folder / "run.json", record)
    found = make_board(*load_records([tmp_path / "runs"]))
    assert len(rows_of(found)) == 2 and not found.unreadable
    shown = next(row for row in rows_of(found) if row.first_run.run_id and row.name != "good").name
    assert shown.isprintable() and len(shown) <= 100
    export.write_board(found, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "runs"]
    _check_page(to_html(found), shown)
    _check_sheet(export.to_csv(found))
    text = export.to_markdown(found)
    assert "<" not in text.replace("\\<", "") and "`" not in text.replace("\\`", "")
    cells = [x.replace("\\|", "").count("|") for x in text.splitlines() if x.startswith("|")]
    assert len(cells) == 4 and len(set(cells)) == 1
    console = Console(file=io.StringIO(), width=200)
    export.print_board(found, console)
    assert "\x1b" not in console.file.getvalue() and "\x07" not in console.file.getvalue()


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.data, self._script = [], set(), "", False
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._script = tag == "script" and ("type", "application/json") in attrs

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.data += data
        self.texts.append(data)


def _check_page(text, shown):
    reader = Reader(text)
    assert reader.tags.count("script") == 2 and reader.tags.count("style") == 1
    assert not {"img", "iframe", "link", "svg", "object"} & set(reader.tags)
    assert not {name for name in reader.attributes if name.startswith("on") or name == "src"}
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "<" not in reader.data and "&" not in reader.data
    data = json.loads(reader.data)
    names = [row["name"] for group in data["comparable_sets"][0]["groups"] for row in group["rows"]]
    assert shown in names and shown in reader.texts


def _check_sheet(text):
    lines = list(csv.reader(io.StringIO(text)))
    assert len({len(line) for line in lines}) == 1 and len(lines) == 3
    for line in lines[1:]:
        for cell in line:
            assert not cell.startswith(("=", "+", "@", "\t")), cell
            assert not cell.startswith("-") or cell.lstrip("-")[:1].isdigit()


def deep(n):
    return '{"a":' * n + "1" + "}" * n


BAD_RUNS = {
    "NaN": '{"format": NaN}',
    "overflow": '{"format": 2, "settings": {"objective": "causal_lm", "seed": 1e400}}',
    "digits": '{"format": ' + "9" * 6000 + "}",
    "deep": deep(100_000),
    "rather deep": '{"format": 2, "run_id": "x", "settings": ' + deep(40) + "}",
    "list": "[]",
    "empty": "",
    "twice": '{"format": 2, "format": 2}',
    "bytes": b"\xff\xfe{}",
    "yaml": "!!python/object/apply:os.system ['touch pwned']",
    "large": '{"format": 2, "x": "' + "a" * 5_000_000 + '"}',
    "newer": '{"format": 3}',
    "no settings": '{"format": 2, "run_id": "x"}',
    "settings": '{"format": 2, "run_id": "x", "settings": "evil"}',
    "run_id": '{"format": 2, "run_id": 7, "settings": {"objective": "causal_lm"}}',
    "null": "null",
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_a_damaged_run_is_unreadable_and_the_others_stay(tmp_path, kind):
    runs.candidate(tmp_path, "good", [2.0, 2.1, 2.2])
    (tmp_path / "bad").mkdir()
    text = BAD_RUNS[kind]
    (tmp_path / "bad/run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = make_board(*load_records([tmp_path]))
    assert [row.name for row in rows_of(found)] == ["good"]
    ((folder, reason),) = found.unreadable
    assert folder == f"{tmp_path.name}/bad" and reason.isprintable() and len(reason) <= 300
    assert folder in export.to_markdown(found).replace("\\", "") and folder in to_html(found)


EVIL = {  # file of a run folder: what it holds instead
    "metrics.jsonl": [b'{"step": 1}\n[]\n', b"{}\n", b'{"step": "1"}\n', b'{"step": -1}\n'],
    "status.json": [b"[]", b'{"state": 1}', b'{"code": "70"}'],
    "events.jsonl": [b"x\n", b'{"event": 1}\n'],
    "eval/100/bits_per_byte.json": [
        b'{"scores": {}}',
        b'{"scores": [1]}',
        b'{"scores": [{"name": "test/bits_per_byte", "value": true}]}',
        b'{"scores": [{"name": "test/bits_per_byte", "value": 1e300}]}',
        b'{"version": "1", "scores": []}',
        b'{"step": 50, "scores": []}',
    ],
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in EVIL.items() for t in texts])
def test_a_damaged_file_makes_its_run_unreadable(tmp_path, name, text):
    runs.candidate(tmp_path, "good", [2.0, 2.1, 2.2])
    runs.run(tmp_path / "bad", "bad", 0, 1.0)
    (tmp_path / "bad" / name).write_bytes(text)
    found = make_board(*load_records([tmp_path]))
    assert [row.name for row in rows_of(found)] == ["good"]
    assert name.split("/")[0] in found.unreadable[0].reason


def test_links_pipes_and_folders_are_not_read(tmp_path):
    """covers S5"""
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    root = tmp_path / "runs"
    runs.candidate(root, "good", [2.0, 2.1, 2.2])
    for kind in ("link", "pipe", "folder"):
        folder = runs.run(root / kind, kind, 0, 1.0)
        (folder / "run.json").unlink()
    (root / "link/run.json").symlink_to(secret)
    os.mkfifo(root / "pipe/run.json")
    (root / "folder/run.json").mkdir()
    runs.run(tmp_path / "outside", "outside", 0, 1.0)
    (root / "linked").symlink_to(tmp_path / "outside")
    runs.run(root / "scores", "scores", 0, 1.0)
    (root / "scores/eval").rename(tmp_path / "elsewhere")
    (root / "scores/eval").symlink_to(tmp_path / "elsewhere")
    found = make_board(*load_records([root]))
    reasons = {item.folder.split("/")[1]: item.reason for item in found.unreadable}
    assert reasons.keys() == {"link", "pipe", "folder"}
    assert "links are not followed" in reasons["link"]
    assert "not a regular file" in reasons["pipe"] and "not a regular file" in reasons["folder"]
    named = {row.name: row for row in rows_of(found)}
    assert named.keys() == {"good", "scores"} and named["scores"].sample.values == ()


def test_nothing_found_in_a_folder_is_executed(tmp_path):
    """covers S1, S2"""
    folder = runs.run(tmp_path / "runs/a", "a", 0, 2.0)
    mark = tmp_path / "pwned"
    evil = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    for name in ("config.py", "__init__.py", "sitecustomize.py", "jinja2.py", "board.html.j2"):
        (folder / name).write_text(evil)
        (folder.parent / name).write_text(evil)
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {mark}']")
    found = make_board(*load_records([tmp_path / "runs"]))
    export.write_board(found, tmp_path / "out")
    assert len(rows_of(found)) == 1 and not mark.exists()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["NaN", "Infinity", "", "x", "\x1b", "test/bits_per_byte"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def paths(tree, here=()):
    yield here
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from paths(value, (*here, key))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / "runs"
    runs.candidate(root, "good", [2.0, 2.1, 2.2], rows=2)
    study = {"comparisons": [["bad", "good"]], "seeds": [1], "n_comparisons": 2, "better": "lower"}
    bad = runs.run(root / "bad", "bad", 1, 1.0, rows=1, study=study | {"margin": 0.1})
    event = {"event": "settings_changed", "changes": {"train.steps": [50, 100]}}
    (bad / "events.jsonl").write_text(json.dumps(event) + "\n")
    return bad


@pytest.mark.parametrize("examples", [40, pytest.param(120, marks=pytest.mark.slow)])
def test_any_json_in_any_place_is_survived(folder, examples):
    given_any = given(data=st.data())
    tried = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    tried(given_any(lambda data: put_json_anywhere(folder, data)))()


def put_json_anywhere(folder, data):
    """Puts a drawn value at a drawn place of a drawn file; the board must survive it."""
    names = ("run.json", "status.json", "eval/100/bits_per_byte.json", "metrics.jsonl")
    names += ("events.jsonl",)
    path = folder / data.draw(st.sampled_from(names))
    old = path.read_text()
    tree = json.loads(old)
    changed = copy.deepcopy(tree)
    place, value = data.draw(st.sampled_from(list(paths(tree)))), data.draw(JSON)
    if place:
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
    else:
        changed = value
    path.write_text(json.dumps(changed) + "\n")
    try:
        found = make_board(*load_records([folder.parent]))
        assert "good" in [row.name for row in rows_of(found)]
        assert len(rows_of(found)) + len(found.unreadable) >= 2
        json.dumps(export.to_json_tree(found), allow_nan=False)
        assert to_html(found) and export.to_markdown(found) and export.to_csv(found)
    finally:
        path.write_text(old)
