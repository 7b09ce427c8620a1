"""Compares span scores with a loop, and tests how the board separates evaluation sets."""

import json
import math
import types

import board_runs
import numpy as np
import oracle
import pytest
import tiny
from data_stores import made_store

from arch import ModelConfig, SequenceInfo
from eval.tasks.bits_per_byte import read_batches
from eval.tasks.denoised import DenoisingLoss, number_spans
from protocol.records.run_record import read_run

TEXTS = ["a river runs through it", "we hold these truths", "call me", "né à Paris"]


@pytest.fixture(scope="module")
def ctx(tmp_path_factory):
    store = made_store(
        tmp_path_factory.mktemp("denoised") / "s",
        [np.frombuffer((t * 3).encode(), np.uint8).astype(np.int32) for t in TEXTS],
    )
    config = ModelConfig(width=16, depth=1, vocab_size=oracle.VOCAB)
    context = oracle.eval_context(
        tiny.model(config), config=config, objective="denoising", length=32, batch=2
    )
    data = types.SimpleNamespace(tokenizer=oracle.Bytes.tokenizer, test=store)
    return context._replace(data=data)


def test_spans_are_judged_as_a_loop_does(ctx):
    model, special = ctx.trainable.model, ctx.data.tokenizer.specials
    nats, correct, size, spans = [], [], 0, []
    for batch in read_batches(ctx, ctx.data.test):
        hidden = model(batch["tokens"], SequenceInfo.from_batch(batch, "prefix"))[0]
        logits = np.asarray(model.logits(hidden), np.float64)
        for row in range(len(logits)):
            current = None
            for at in np.flatnonzero(batch["weights"][row]):
                target, scores = int(batch["targets"][row, at]), logits[row, at, : oracle.VOCAB]
                nats.append(np.log(np.exp(scores).sum()) - scores[target])
                correct.append(scores.argmax() == target)
                if target in special.sentinels:
                    current = []
                    spans.append(current)
                elif target != special.eos:
                    current.append(correct[-1])
            plain = [t for t in batch["targets"][row][batch["weights"][row] == 1] if t < 256]
            text = bytes(map(int, plain)).decode(errors="replace")
            size += len(text.replace("\ufffd", "?").encode())
    scores_by_name = {score.name: score.value for score in DenoisingLoss(splits=("test",))(ctx)}
    assert scores_by_name["test/denoised_nats"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert scores_by_name["test/denoised_accuracy"] == pytest.approx(np.mean(correct))
    assert scores_by_name["test/denoised_bits_per_byte"] == pytest.approx(
        sum(nats) / math.log(2) / size
    )
    assert scores_by_name["test/denoised_span_match"] == pytest.approx(
        np.mean([all(s) for s in spans])
    )


def test_spans_begin_at_sentinels_and_leave_out_ends():
    special = types.SimpleNamespace(sentinels=(90, 91), eos=2)
    targets = np.array([[90, 5, 6, 91, 7, 2, 0], [5, 6, 7, 2, 0, 0, 0]])
    spans = number_spans(targets, targets != 0, special)
    assert spans.tolist() == [[0, 1, 1, 0, 2, 0, 0], [1, 1, 1, 0, 0, 0, 0]]


def test_the_board_tells_sets_apart(tmp_path):
    """Results on different evaluation sets are not ranked together."""
    keys = []
    for name, digest in (("a", "11"), ("b", "11"), ("c", "22")):
        folder = board_runs.run(tmp_path / name, scores=[("test/eval_set_sha256", digest)])
        keys.append(read_run(folder, name).keys["evaluation"])
    assert keys[0] == keys[1] != keys[2] and keys[0].endswith("eval_set_sha256 11")


def test_what_a_study_varies_keeps_its_rows_together(tmp_path):
    """This holds only for settings that the study declares, and not for runs without a study."""
    keys = []
    for name, refresh_every, rate, varies in (
        *(("a", 0, 0.05, ["contrastive.mining"]), ("b", 9, 0.05, ["contrastive.mining"])),
        *(("c", 9, 0.1, ["contrastive.mining"]), ("d", 9, 0.05, [])),
    ):
        folder = board_runs.run(tmp_path / name)
        record = json.loads((folder / "run.json").read_text())
        contrastive = {"temperature": rate, "mining": {"refresh_every": refresh_every}}
        record["settings"] |= {"objective": "contrastive", "contrastive": contrastive}
        record["study"] = record.get("study", {}) | {"varied_settings": varies}
        (folder / "run.json").write_text(json.dumps(record))
        keys.append(read_run(folder, name).keys["objective"])
    assert keys[0] == keys[1] and len({*keys}) == 3
    assert "varies=contrastive.mining" in keys[0] and "mining.refresh_every=9" in keys[3]


def test_the_board_knows_dropout_and_the_parts_of_a_mixture(tmp_path):
    folder = board_runs.run(tmp_path / "a")
    record = json.loads((folder / "run.json").read_text())
    record["settings"] |= {
        "objective": "mixture",
        "mixture": {"parts": [["causal_lm", 1.0], ["contrastive", 0.1]]},
        "contrastive": {"temperature": 0.05},
    }
    record["settings"]["model"] |= {"block": {"dropout": 0.2}, "embed": {"dropout": 0.0}}
    (folder / "run.json").write_text(json.dumps(record))
    key = read_run(folder, "a").keys["objective"]
    for text in ("causal_lm.z_loss=0", "contrastive.temperature=0.05", "contrastive.dropout=0,0.2"):
        assert text in key
