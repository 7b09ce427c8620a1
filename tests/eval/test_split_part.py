"""The part of a split that `eval.limit` selects: its windows, its bytes, and what is recorded."""

import json
import math

import board_runs
import jax
import numpy as np
import pytest
import tiny

from data.open_stores import open_data
from data.packing import PackedRows
from data.tokenizers import ByteTokenizer, train_bpe
from errors import ConfigError
from eval import again, harness
from eval.load_run import recorded_settings
from eval.split_part import (
    BLOCK,
    MIN_WINDOWS,
    count_bytes,
    count_windows,
    eval_share,
    select_part,
)
from eval.task import EvalContext
from eval.tasks.baselines import Baselines
from eval.tasks.bits_per_byte import BitsPerByte, read_batches, sum_terms
from eval.tasks.loss_by_position import LossByPosition
from eval.tasks.masked import MaskedTokenLoss
from objectives import CausalLM, MaskedLM, Trainable
from protocol.board.board import make_board
from protocol.records.run_record import read_run
from settings.changes import with_changes
from settings.tree import as_json
from training import mesh as meshes
from training.run.folder import RunFolder
from training.settings import Settings

LENGTH = 16


@pytest.fixture(scope="module")
def ctx(tmp_path_factory):
    """A model over a text with characters of several bytes, scored in windows of 16 bytes."""
    root = tmp_path_factory.mktemp("part")
    for split, n in (("train", 20), ("valid", 2), ("test", 40)):
        text = "\n\n".join(
            f"{i}: the naïve cat sat on {i * 37 % 11} mats — or {i}" for i in range(n)
        )
        (root / f"{split}.txt").write_text(text)
    settings = with_changes(
        Settings(model=tiny.config(depth=1)),
        {
            **{"data.source": "text", "data.path": str(root / "train.txt")},
            **{"data.valid_path": str(root / "valid.txt")},
            **{"data.test_path": str(root / "test.txt"), "data.cache": str(root / "cache")},
            **{"data.document_separator": "\n\n", "data.tokenizer": "bytes"},
            **{"train.seq_len": LENGTH, "train.batch_size": 4, "train.steps": 10},
            **{"eval.batch_size": 8, "eval.splits": ("test",), "eval.limit": 24 * LENGTH},
        },
    )
    data = open_data(settings.data)
    settings = with_changes(settings, {"model.vocab_size": data.tokenizer.vocab_size})
    model = tiny.model(settings.model)
    mesh = meshes.make_mesh(meshes.MeshConfig())
    placed = jax.device_put(model, meshes.param_shardings(mesh, model))
    return EvalContext(Trainable(placed), mesh, settings, CausalLM(), data)


def limited(ctx: EvalContext, limit: int) -> EvalContext:
    return ctx._replace(settings=with_changes(ctx.settings, {"eval.limit": limit}))


def test_a_part_is_fixed_nested_and_named(ctx):
    store = ctx.data.test
    whole, part, smaller = (
        select_part(limited(ctx, n), store) for n in (0, 24 * LENGTH, 11 * LENGTH + 3)
    )
    n_windows = math.ceil((store.n_tokens + store.n_documents) / LENGTH)
    assert whole.label == "" and list(whole.windows) == list(range(n_windows))
    assert len(part.windows) == 24 and {*smaller.windows} < {*part.windows} < {*whole.windows}
    blocks = np.unique(part.windows // BLOCK)
    assert len(blocks) <= 4 and blocks.max() - blocks.min() > 3  # spread over the split
    assert part.label.startswith(f"24 of {n_windows} windows of 16, sha256 ")
    assert part.label != smaller.label
    reseeded = ctx._replace(settings=with_changes(ctx.settings, {"seed": 9, "eval.batch_size": 3}))
    assert select_part(reseeded, store).label == part.label
    assert select_part(limited(ctx, n_windows * LENGTH), store).label == ""


def test_windows_of_a_part_are_those_of_the_whole_split(ctx):
    """Masks and other random choices are those of the window in the whole split as well."""
    masked = ctx._replace(objective=MaskedLM())
    for context in (ctx, masked):
        store, rows = ctx.data.test, {}
        for limit in (0, 24 * LENGTH):
            batches = list(read_batches(limited(context, limit), store))
            rows[limit] = np.concatenate([b["tokens"] for b in batches])
        windows = select_part(context, store).windows
        np.testing.assert_array_equal(rows[24 * LENGTH][: len(windows)], rows[0][windows])


def test_scores_of_a_part_are_sums_over_its_windows(ctx):
    store, part = ctx.data.test, select_part(ctx, ctx.data.test)
    scores = {s.name: s for s in BitsPerByte(("test",))(ctx)}
    by_hand = [sum_terms_of(ctx, store, [number]) for number in part.windows]
    nats, n_tokens = np.sum(by_hand, axis=0)
    assert scores["test/nats_per_token"].weight == n_tokens
    assert scores["test/nats_per_token"].value == pytest.approx(nats / n_tokens, rel=1e-5)
    packed = PackedRows(store, LENGTH, 1)
    targets = np.concatenate([s.tokens[1:] for w in part.windows for s in packed.row(int(w))])
    n_bytes = int(np.sum(targets < 256))  # each byte of UTF-8 is a token
    assert scores["test/bits_per_byte"].weight == n_bytes == count_bytes(ctx, store, part)
    assert scores["test/bits_per_byte"].value == pytest.approx(nats / math.log(2) / n_bytes)
    everything = part._replace(windows=np.arange(-(-packed.epoch_length // LENGTH)))
    assert count_bytes(ctx, store, everything) == store.text_bytes


def sum_terms_of(ctx, store, windows):
    from eval.tasks.bits_per_byte import evaluate_store

    batches = read_batches(ctx, store, windows=np.array(windows))
    return evaluate_store(ctx, store, batches)[0]["nats"]


def test_every_task_reads_the_same_part(ctx):
    """Rows of other lengths, and n-grams, predict the tokens that the model predicts."""
    n_tokens = sum_terms(ctx, ctx.data.test)["nats"][1]
    positions = {s.name: s for s in LossByPosition()(ctx)}
    n_bytes = count_bytes(ctx, ctx.data.test, select_part(ctx, ctx.data.test).extended_to_blocks())
    weights = {positions[f"test/bits_per_byte@{factor}x"].weight for factor in (1, 2, 4, 8)}
    assert weights == {n_bytes}
    n_of_positions = sum(s.weight for name, s in positions.items() if "/nats@" in name)
    assert n_tokens <= n_of_positions < n_tokens + BLOCK * LENGTH
    baselines = {s.name: s for s in Baselines(("test",))(ctx)}
    whole = {s.name: s for s in Baselines(("test",))(limited(ctx, 0))}
    assert baselines.keys() == whole.keys()
    name = "test/baseline/train/token_2"
    assert baselines[name].value != whole[name].value
    assert baselines[name].value == pytest.approx(whole[name].value, rel=0.2)
    masked = ctx._replace(objective=MaskedLM())
    part, all_windows = (
        {s.name: s for s in MaskedTokenLoss(("test",))(limited(masked, n))}
        for n in (ctx.settings.eval.limit, 0)
    )
    assert part["test/mask_sha256"] == all_windows["test/mask_sha256"]
    assert 0 < part["test/masked_nats"].weight < all_windows["test/masked_nats"].weight


def test_bytes_of_ids_are_exact_for_bytes_and_add_up_for_others():
    text = "the naïve cat — sat ☃ on the mat, the cat sat"
    for tokenizer in (ByteTokenizer(), train_bpe([text], 270)):
        (ids,) = tokenizer.encode([text])
        lengths = tokenizer.byte_lengths()
        assert lengths[ids].sum() == len(text.encode())
        assert lengths[tokenizer.specials.bos] == lengths[tokenizer.specials.eos] == 0


def test_an_automatic_limit_follows_from_the_tokens_of_training(ctx):
    def windows(steps: int, n_windows: int, limit: int = -1) -> int:
        changes = {"train.steps": steps, "train.batch_size": 16, "eval.limit": limit}
        return count_windows(with_changes(ctx.settings, changes), LENGTH, n_windows)

    assert windows(0, 5000) == 5000  # nothing was trained here, as in an imported model
    assert windows(1, 5000) == windows(48, 5000) == MIN_WINDOWS
    assert windows(96, 5000) == windows(100, 5000) == 256  # a power of two below a sixth
    assert windows(1875, 5000) == windows(9999, 5000) == 5000
    assert windows(1, 60) == 60
    assert windows(1, 5000, 0) == 5000 and windows(1, 5000, 40 * LENGTH + 5) == 40


def test_the_share_of_an_evaluation_is_that_of_its_forward_passes(ctx):
    n_trained = 10 * 4 * LENGTH
    assert eval_share(ctx.settings, ctx.data) == pytest.approx(24 * LENGTH / n_trained / 3)
    both = with_changes(ctx.settings, {"eval.splits": ("valid", "test"), "eval.limit": 2 * LENGTH})
    assert eval_share(both, ctx.data) == pytest.approx(4 * LENGTH / n_trained / 3)
    assert eval_share(with_changes(both, {"train.steps": 0}), ctx.data) == 0
    # Two splits of an automatic limit have at most a ninth of the FLOPs of training.
    automatic = with_changes(both, {"eval.limit": -1, "train.steps": 1000})
    assert 0 < eval_share(automatic, ctx.data) <= 1 / 9


def test_a_limit_below_one_window_is_refused():
    with pytest.raises(ConfigError, match=r"eval.limit 255 is below one window of 256.*or to 0"):
        with_changes(Settings(), {"eval.limit": 255})
    with pytest.raises(ConfigError, match="eval.limit is -2"):
        with_changes(Settings(), {"eval.limit": -2})
    with_changes(Settings(), {"eval.limit": 256})


def test_a_run_of_a_version_without_limits_is_evaluated_on_whole_splits(ctx):
    tree = as_json(ctx.settings)
    assert recorded_settings(tree).eval.limit == 24 * LENGTH
    del tree["eval"]["limit"]
    assert recorded_settings(tree).eval.limit == 0


def test_a_result_is_complete_for_its_part_alone(ctx, tmp_path):
    """Another part is evaluated anew; the same part, and a second comparison, are not."""
    folder = RunFolder(tmp_path)
    seen = []

    def evaluate(limit: int) -> dict:
        scores = harness.evaluate(limited(ctx, limit), ["bits_per_byte"], folder, 1)
        seen.append(json.loads((tmp_path / "eval/1/bits_per_byte.json").read_text())["seconds"])
        return scores

    part = evaluate(24 * LENGTH)
    assert part["test/part"] == select_part(ctx, ctx.data.test).label
    assert evaluate(24 * LENGTH) == part and seen[0] == seen[1]
    whole = evaluate(0)
    assert "test/part" not in whole and seen[2] != seen[1]
    # What is recorded of the whole split is compared with the whole split.
    pairs = again.evaluate_again(ctx, ["bits_per_byte"], folder, 1)
    assert len(pairs) == 2 and not any(pair.differs for pair in pairs)


def board_of(tmp_path, *parts: str, **scores):
    records = []
    for i, part in enumerate(parts):
        rows = [("test/part", part)] if part else []
        folder = board_runs.run(tmp_path / f"{i}", f"model{i}", scores=rows + scores.get("all", []))
        records.append(read_run(folder, f"{i}"))
    return make_board(records)


def test_the_board_keeps_parts_apart_and_names_them(tmp_path):
    labels = ("512 of 2,549 windows of 64, sha256 ab", "", "256 of 2,549 windows of 64, sha256 cd")
    board = board_of(tmp_path, *labels)
    assert len(board.comparable_sets) == 3
    text = " ".join(board.not_comparable)
    assert "the scored part of the split" in text and "the whole split" in text
    assert "512 of 2,549 windows of 64" in text and "sha256" not in text
    assert len(board_of(tmp_path / "b", labels[0], labels[0]).comparable_sets) == 1


def test_scores_of_several_parts_are_not_pooled(tmp_path):
    """The metric is of one part; another split, which was scored on several, has no mean."""
    for seed in range(3):
        label = [("valid/part", f"{seed // 2} of 9 windows of 64")]
        board_runs.run(tmp_path / f"{seed}", "dense", seed, 2.0 + seed / 10, scores=label)
    records = [read_run(tmp_path / f"{seed}", f"{seed}") for seed in range(3)]
    (row,) = make_board(records).comparable_sets[0].rows
    assert "valid/bits_per_byte" not in row.scores and "test/bits_per_byte" in row.scores
    assert "valid/bits_per_byte was evaluated on several parts of its split" in row.notes


def test_baselines_of_another_part_are_not_compared(tmp_path):
    bigram = ("test/baseline/seen/token_2", 1.0)
    folder = board_runs.run(tmp_path / "run", scores=[("test/part", "8 of 9 windows of 64")])
    result = json.loads((folder / "eval/100/bits_per_byte.json").read_text())
    result["task"] = "baselines"
    for scores, is_compared in (([], False), ([("test/part", "8 of 9 windows of 64")], True)):
        result["scores"] = [{"name": n, "value": v, "weight": 1} for n, v in [bigram, *scores]]
        board_runs.write(folder / "eval/100/baselines.json", result)
        assert (bigram[0] in read_run(folder, "run").scores) == is_compared


def test_an_evaluation_of_another_part_contradicts_no_log(tmp_path):
    folder = board_runs.run(tmp_path / "run")
    log = folder / "metrics.jsonl"
    *rows, last = log.read_text().splitlines()
    for logged, is_contradiction in (({}, True), ({"test/part": "8 of 9 windows of 64"}, False)):
        row = json.loads(last) | {"test/bits_per_byte": 1.5} | logged
        log.write_text("\n".join([*rows, json.dumps(row), ""]))
        assert bool(read_run(folder, "run").evidence.contradictions) == is_contradiction
