"""Tests rows of fill-in-the-middle: the parts make the text again, within one document."""

import dataclasses

import numpy as np
import pytest
import tiny

from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from objectives import CausalLM
from training.settings import Settings

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.specials.bos, TOKENIZER.specials.eos
PRE, SUF, MID = TOKENIZER.specials.sentinels[:3]
LENGTH = 48


def slices(rng):
    """Returns slices that fill a row: the end of a document, two whole ones, and a beginning."""
    texts = [rng.integers(10 * i, 10 * i + 10, n).tolist() for i, n in enumerate((9, 12, 2, 23))]
    framed = [[*texts[0], EOS], [BOS, *texts[1], EOS], [BOS, *texts[2], EOS], [BOS, *texts[3]]]
    assert sum(len(tokens) - 1 for tokens in framed) == LENGTH
    return [np.array(tokens, np.int32) for tokens in framed]


def untangle(tokens):
    """Returns the order of a slice, and its text as it was."""
    start = int(tokens[0] == BOS)
    ids = tokens[start:]
    if PRE not in ids:
        return "", ids
    assert ids[0] == PRE and ids[-1] == EOS and [*ids].count(SUF) == [*ids].count(MID) == 1
    suf, mid = ids.index(SUF), ids.index(MID)
    if suf == 1:  # The suffix comes first; behind MID stand prefix and middle.
        return "SPM", [*ids[mid + 1 : -1], *ids[suf + 1 : mid]]
    return "PSM", [*ids[1:suf], *ids[mid + 1 : -1], *ids[suf + 1 : mid]]


def test_the_parts_make_the_text_again_within_their_document():
    objective = CausalLM(fim_rate=0.7, fim_spm_rate=0.4)
    make_row = objective.make_row_fn(tiny.config(), LENGTH, TOKENIZER)
    counts, cuts = {"": 0, "PSM": 0, "SPM": 0}, set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        originals = slices(rng)
        row = make_row(originals, LENGTH, rng)
        plain = CausalLM().make_row(originals, LENGTH, rng)
        for name in ("positions", "segment_ids", "weights"):
            np.testing.assert_array_equal(row[name], plain[name])
        for number, original in enumerate(originals, start=1):
            where = row["segment_ids"] == number
            ids = [*row["tokens"][where].tolist(), int(row["targets"][where][-1])]
            assert ids[1:] == row["targets"][where].tolist() and len(ids) == len(original)
            order, text = untangle(ids)
            if not order:
                assert ids == original.tolist()
                continue
            expected = [i for i in original.tolist() if i < 256]
            assert text == expected[: len(text)] and len(expected) - len(text) in (3, 4)
            counts[order] += number == 2
            cuts.add(len(text))
        counts[""] += PRE not in row["tokens"][row["segment_ids"] == 2]
        assert PRE not in row["tokens"][row["segment_ids"] == 3]  # Two tokens are too short.
    total = sum(counts.values())
    assert total == 400 and len(cuts) == 3
    assert counts[""] / total == pytest.approx(0.3, abs=0.07)
    assert counts["SPM"] / (total - counts[""]) == pytest.approx(0.4, abs=0.09)


def test_held_out_text_keeps_its_order_and_rate_0_changes_nothing():
    objective = CausalLM(fim_rate=1.0)
    assert objective.for_eval() == dataclasses.replace(objective, fim_rate=0.0)
    rng = np.random.default_rng(0)
    row = objective.for_eval().make_row_fn(tiny.config(), LENGTH, TOKENIZER)(slices(rng), 48, rng)
    assert not np.isin(row["tokens"], [PRE, SUF, MID]).any()


def test_what_cannot_be_rearranged_is_refused():
    with pytest.raises(ConfigError, match="objective causal_lm rearranges text, so that data.chat"):
        Settings.check(
            dataclasses.replace(
                Settings(causal_lm=CausalLM(fim_rate=0.5)),
                data=dataclasses.replace(
                    Settings().data, source="jsonl", path="x", weight_field="w"
                ),
            )
        )
    lacking = ByteTokenizer()
    lacking.specials = dataclasses.replace(lacking.specials, sentinels=())
    with pytest.raises(DataError, match="causal_lm.fim_rate needs the token 'sentinels'"):
        CausalLM(fim_rate=0.5).make_row_fn(tiny.config(), LENGTH, lacking)
