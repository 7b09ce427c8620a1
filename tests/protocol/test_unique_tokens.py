"""Data-limited studies: runs that repeat the same distinct tokens, and their matched axis."""

import dataclasses
import json

import board_runs
import jax
import numpy as np
import pytest
import tiny_runs
from data_stores import distinct, made_store

from arch import ModelConfig
from data.loader import Batches, RepeatedRows
from data.open_stores import open_data
from data.packing import PackedRows
from data.settings import DataConfig
from errors import ConfigError, DataError
from protocol.board import sentences
from protocol.board.board import make_board
from protocol.records.load import load_records
from protocol.study.study import Study, describe_unmatched, make_plan
from settings.changes import with_changes
from training.loop import part_batches
from training.mesh import make_mesh
from training.settings import Settings, resolve

SHARED = with_changes(
    Settings(model=ModelConfig(width=32, depth=1)),
    {"train.batch_size": 4, "train.seq_len": 64, "train.unique_tokens": 2600},
)
STUDY = Study(
    candidates={"dense": {"train.steps": 20}, "repeated": {"train.steps": 80}},
    reference="dense",
    comparisons=(("repeated", "dense"),),
    margin=0.01,
    axis="unique_tokens",
    match_by="as_is",
)


def make_row(slices, length, rng):
    tokens = np.concatenate([*slices])[:length] if slices else np.zeros(length, np.int32)
    return {"tokens": tokens}


def test_the_first_rows_repeat_in_new_orders(tmp_path):
    store = made_store(tmp_path / "s", distinct([30, 1, 7, 120, 55, 2]))
    source = PackedRows(store, 8, 1, 3)
    rows = RepeatedRows(source, 12, 3)
    batches = Batches(rows, 4, make_row, 3)
    epochs = [np.concatenate([batches[3 * e + i]["tokens"] for i in range(3)]) for e in range(3)]
    expected = np.stack(
        [make_row([s.tokens for s in source.row(i)], 8, None)["tokens"] for i in range(12)]
    )
    assert np.array_equal(epochs[0], expected)
    for epoch in epochs[1:]:
        assert not np.array_equal(epoch, epochs[0])
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, epochs[0]))
    assert not np.array_equal(epochs[1], epochs[2])
    assert [batches.count_unique_tokens(n) for n in (2, 3, 9)] == [64, 96, 96]
    assert batches.count_epochs(9) == 3
    with pytest.raises(DataError, match=r"asks for 800 distinct tokens, the training split has 22"):
        RepeatedRows(source, 100, 3)


def test_a_plan_matches_unique_tokens_and_states_epochs():
    matched = make_plan(STUDY, SHARED, 256)
    for cell in matched.plan.cells:  # 40 whole rows of 64 tokens
        assert cell.budget == 2560
    dense, repeated = describe_unmatched(matched)
    assert dense.endswith("reference; 2 epochs of 2.56k unique tokens")
    assert "unique training tokens +0.00 % from the reference" in repeated
    assert "tokens 4.00x" in repeated and repeated.endswith("8 epochs of 2.56k unique tokens")
    assert "unique_tokens" not in repeated.split("relative costs")[1]


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        ({}, {"train.unique_tokens": 0}, "dense has train.unique_tokens 0, the whole training"),
        ({"match_by": "size"}, {}, "axis 'unique_tokens' with match_by='size'"),
        ({}, {"train.unique_tokens": 255}, "is below one batch of 4 x 64 tokens; set it to 256"),
        (
            {"candidates": {"dense": {}, "repeated": {"train.unique_tokens": 5120}}},
            {},
            r"repeated has unique_tokens 5120, \+100.00% from dense",
        ),
        (
            {"objectives": ("contrastive",)},
            {"contrastive.mining.refresh_every": 5},
            "whose memory bank reads the whole split",
        ),
    ],
)
def test_what_does_not_determine_unique_tokens_is_refused(study, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(dataclasses.replace(STUDY, **study), with_changes(SHARED, settings), 256)


def test_the_board_groups_rows_of_equal_unique_tokens(tmp_path):
    declared = {"axis": "unique_tokens", "value": 20_000.0, "comparisons": [["a", "b"]]}
    for name, steps, unique in (("a", 100, 20_000), ("b", 400, 20_000), ("c", 100, 30_000)):
        train = {"steps": steps, "unique_tokens": unique}
        for seed in range(3):
            folder = board_runs.run(
                *(tmp_path / f"{name}-{seed}", name, seed, 2.0 + 0.01 * seed + steps / 1e4),
                train=train,
                rows=steps // 10,
                log={"every": 10},
                study=declared,
            )
            log = folder / "metrics.jsonl"
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            for row in rows:
                row |= {"unique_tokens": min(row["tokens"], unique)}
            log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (comparable_set,) = make_board(*load_records([tmp_path])).comparable_sets
    (group,) = comparable_set.groups
    assert sentences.group_title(group) == "At 20000 unique training tokens"
    assert [v.kind for v in group.verdicts] == ["lower"]
    assert "All have equal" not in sentences.summarize_group(group, comparable_set).costs[0]
    (problem,) = [p for p in group.problems if p.startswith("c:")]
    assert "its unique_tokens is 25600, 1.28 times the declared 20000" in problem


def test_a_run_without_a_limit_is_that_of_a_version_without_the_setting(tmp_path):
    for seed, train in enumerate(({}, {"unique_tokens": 0}, {"unique_tokens": 9_000})):
        board_runs.run(tmp_path / f"a-{seed}", "a", seed, 2.0 + seed / 100, train=train)
    records, _ = load_records([tmp_path])
    identities = [record.identity for record in sorted(records, key=lambda r: r.seed)]
    assert identities[0] == identities[1] != identities[2]


def test_a_run_repeats_its_tokens(tmp_path):
    tiny_runs.write_text(tmp_path)
    path, cache = str(tmp_path / "text.txt"), str(tmp_path / "cache")
    data = open_data(DataConfig(source="text", path=path, document_separator="\\n", cache=cache))
    changes = {"train.seq_len": 16, "train.unique_tokens": 138, "seed": 5}
    settings = resolve(with_changes(SHARED, changes), data.tokenizer.vocab_size)
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    batches = part_batches(settings, settings.mixture_parts()[0], data, mesh)
    assert batches.count_unique_tokens(6) == 128 and batches.count_epochs(6) == 3
    first, again = (
        {tuple(row) for i in steps for row in batches[i]["tokens"]} for steps in ((0, 1), (2, 3))
    )
    assert first == again and len(first) == 8
    many = with_changes(settings, {"train.unique_tokens": 999_999})
    with pytest.raises(DataError, match="asks for 999,984 distinct tokens, the training split has"):
        part_batches(many, many.mixture_parts()[0], data, mesh)
