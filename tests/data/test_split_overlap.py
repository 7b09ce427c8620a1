"""Text that splits share is found when a store is built, and refused above a declared share."""

import dataclasses
import json

import numpy as np
import pytest

from data.open_stores import open_data
from data.settings import DataConfig
from data.split_overlap import SplitOverlap, hash_byte_words
from errors import DataError


def sentences(seed, count):
    """Lines of 20 random words each, which no other seed has."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 500, (count, 20))
    return [" ".join(f"w{word}" for word in row) + "." for row in words]


def shares(overlap):
    return {(s.split, s.other): (s.documents, s.ngrams) for s in overlap.shared_texts()}


def config(tmp_path, train, valid, test, **settings):
    paths = {}
    for name, lines in (("path", train), ("valid_path", valid), ("test_path", test)):
        paths[name] = str(tmp_path / f"{name}.txt")
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    cache = str(tmp_path / "cache")
    return DataConfig(source="text", document_separator="\\n", cache=cache, **paths, **settings)


def test_words_are_letters_digits_and_all_characters_outside_of_ascii():
    text = "It's a test, number 12; naïve 日本 and\n\nA TEST"
    words = ["it", "s", "a", "test", "number", "12", "naïve", "日", "本", "and", "a", "test"]
    hashes = hash_byte_words(np.frombuffer(text.lower().encode(), np.uint8))
    assert len(hashes) == len(words)
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            assert (hashes[i] == hashes[j]) == (a == b), (a, b)


@pytest.mark.parametrize("begin", ["*" * 64, "*" * 65, "/" * 500, "\n"])
def test_what_stands_before_the_first_word_changes_no_hash(begin):
    hashes = [
        hash_byte_words(np.frombuffer(t.encode(), np.uint8)) for t in ("one 2", begin + "one 2")
    ]
    np.testing.assert_array_equal(*hashes)


def test_shares_of_documents_and_of_ngrams():
    train, other = sentences(0, 300), sentences(1, 100)
    overlap = SplitOverlap()
    overlap.add("train", train)
    overlap.add("valid", [*other[:30], *train[:10]])
    overlap.add("test", [" ".join(other[60:99]), " ".join(train[:1] * 1)])
    found = shares(overlap)
    assert found["valid", "train"] == pytest.approx((10 / 40, 10 / 40))
    # The second document of the test split is one of 20 words, the first has 39 times as many.
    assert found["test", "train"] == pytest.approx((1 / 2, 8 / (8 + 39 * 20 - 12)))
    assert found["test", "valid"] == pytest.approx((1 / 2, 8 / (8 + 39 * 20 - 12)))


def test_a_sample_of_the_hashes_estimates_the_shares():
    train, other = sentences(2, 4000), sentences(3, 2000)
    overlap = SplitOverlap(max_hashes=8000)
    for start in range(0, 4000, 100):
        overlap.add("train", train[start : start + 100])
    overlap.add("test", [*other, *train[:500]])
    assert shares(overlap)["test", "train"] == pytest.approx((0.2, 0.2), abs=0.03)


def test_a_split_that_comes_last_is_sampled_like_the_others():
    train = sentences(8, 1500)
    overlap = SplitOverlap(max_hashes=8000)
    overlap.add("train", train)
    overlap.add("test", [*sentences(9, 100), *train[:100]])
    assert shares(overlap)["test", "train"] == pytest.approx((0.5, 0.5), abs=0.1)


def test_short_texts_and_missing_splits_share_nothing():
    overlap = SplitOverlap()
    overlap.add("train", ["a b c"] * 3)
    overlap.add("test", ["a b c", ""])
    assert set(shares(overlap).values()) == {(0.0, 0.0)}


def test_three_names_of_one_text_are_refused(tmp_path):
    """Also if the store is in the cache already; a larger share can be permitted."""
    text = sentences(4, 50)
    cfg = config(tmp_path, text, text, text)
    expected = (
        r"^100 % of the documents and 100 % of the 13-grams of words of the valid split of .*path"
        r".txt are in the train split too, at most 0.1 % may be \(data.max_shared\); use other "
        "files, remove duplicates with python -m data.prepare, or raise data.max_shared$"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=expected):
            open_data(cfg)
    assert open_data(dataclasses.replace(cfg, max_shared=1.0)).test.n_documents == 50


def test_one_leaked_document_of_the_test_split_is_refused(tmp_path):
    train, test = sentences(5, 100), sentences(6, 100)
    clean = config(tmp_path, train, sentences(7, 9), test)
    assert open_data(clean).describe()["test"]["documents"] == 100
    (tmp_path / "leaked").mkdir()
    leaked = config(tmp_path / "leaked", train, sentences(7, 9), [*test, train[3]])
    with pytest.raises(DataError, match=r"0.99 % of the documents and 0.99 % .* the test split"):
        open_data(leaked)


def pairs_config(tmp_path, **pairs_by_split):
    names = {"train": "path", "valid": "valid_path", "test": "test_path"}
    for split, pairs in pairs_by_split.items():
        lines = [json.dumps({"anchor": a, "positive": b}) for a, b in pairs]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    paths = {names[split]: str(tmp_path / f"{split}.jsonl") for split in pairs_by_split}
    return DataConfig(source="jsonl", cache=str(tmp_path / "cache"), **paths)


def test_a_changed_copy_of_a_text_pair_is_refused(tmp_path):
    """A quotation of half a text is no copy."""
    train, test = sentences(10, 400), sentences(11, 400)
    valid = list(zip(*[iter(sentences(12, 60))] * 2, strict=True))
    pairs = {"train": list(zip(train[::2], train[1::2], strict=True)), "valid": valid}
    quoting = f"{' '.join(train[0].split()[:16])} {' '.join(test[1].split())}"
    held_out = [(test[0], quoting), *zip(test[2::2], test[3::2], strict=True)]
    assert (
        open_data(pairs_config(tmp_path, **pairs, test=held_out), ("text_pairs",)).test.n_documents
        == 400
    )
    copy = [(f"See: {train[0]}", f"Verily, {train[1]}")]
    # Anchor, match and both together, of 200 pairs.
    expected = (
        r"^0 % of the texts of the text pairs, and most 13-grams of words of 0.5 % of them, of the "
        r"test split of .* are in the train split too, at most 0.1 % may be"
    )
    (tmp_path / "leaked").mkdir()
    leaked = pairs_config(tmp_path / "leaked", **pairs, test=[*held_out[1:], *copy])
    with pytest.raises(DataError, match=expected):
        open_data(leaked, ("text_pairs",))


def test_an_equal_text_pair_of_short_texts_is_shared():
    overlap = SplitOverlap()
    words = [" ".join(text.split()[:7]) for text in sentences(13, 8)]
    for split, first in (("train", 0), ("valid", 4), ("test", 0)):
        overlap.add_pair(split, words[first : first + 2])
        overlap.add_pair(split, words[first + 2 : first + 4])
    shared = {(s.split, s.other): (s.documents, s.similar) for s in overlap.shared_texts()}
    expected = {("valid", "train"): (0, 0), ("test", "train"): (1, 1), ("test", "valid"): (0, 0)}
    assert shared == expected


def test_a_sample_of_text_pairs_estimates_the_share():
    train, test = sentences(14, 3000), sentences(15, 1600)
    overlap = SplitOverlap(max_hashes=8000)
    for text in train:
        overlap.add_pair("train", (text,))
    for text in [*test, *(f"Behold {text}" for text in train[:400])]:
        overlap.add_pair("test", (text,))
    assert overlap.shared_texts()[1].similar == pytest.approx(0.2, abs=0.05)
