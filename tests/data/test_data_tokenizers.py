"""Tokenizers: bytes, BPE trained on the spot, tokenizer.json of others."""

import json
import random

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from data import corpus
from data.chats import marked_text
from data.loss_weights import WeightedPart
from data.tokenizers import (
    ByteTokenizer,
    JsonTokenizer,
    Specials,
    iter_pieces,
    open_tokenizer,
    train_bpe,
)
from errors import DataError

TEXT = ["the cat sat on the mat, the rat ran off\n" * 20, "café über naïve 12 123 don't\t\r\n" * 20]


@pytest.fixture(scope="module")
def bpe() -> JsonTokenizer:
    return train_bpe(TEXT, 300)


def test_the_byte_layout_is_final():
    # the order that DESIGN fixes: bytes, pad, bos, eos, sep, cls, mask, 100 sentinels, 3 modes
    tokenizer = ByteTokenizer()
    sentinels, modes = tuple(range(262, 362)), (362, 363, 364)
    assert tokenizer.specials == Specials(
        256, 257, 258, 259, 260, 261, sentinels, modes, decoder_start=257
    )
    assert tokenizer.vocab_size == 365
    assert tokenizer.encode(["a\u20ac", ""])[0].tolist() == [97, 0xE2, 0x82, 0xAC]
    assert tokenizer.fingerprint == BYTES


# What runs and stores have recorded since the first version: a change here orphans all of them.
BYTES = "5f19d36781d2bf6babc767005b3fa2167a9215d99cbb80dc102d2100ed19cb26"


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(st.text(max_size=50), max_size=5))
def test_text_comes_back(bpe, texts):
    # covers D16
    for tokenizer in (ByteTokenizer(), bpe):
        encoded = tokenizer.encode(texts)
        assert [tokenizer.decode(ids) for ids in encoded] == texts
        assert all(ids.dtype == np.int32 for ids in encoded)
        assert all(((ids >= 0) & (ids < tokenizer.specials.pad)).all() for ids in encoded)


def test_ids_that_are_no_text_are_left_out(bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(["hi"])[0].tolist()
        padded = [tokenizer.specials.bos, *ids, -1, tokenizer.vocab_size, 1 << 40]
        assert tokenizer.decode(np.array(padded)) == "hi"
    assert ByteTokenizer().decode([0xE2, 0x82]) == "\ufffd"  # half a character


def test_bpe_ends_with_the_same_specials(bpe):
    ours = ByteTokenizer().specials
    shift = bpe.specials.pad - ours.pad
    assert 0 < shift <= 300 - 256
    assert bpe.vocab_size == 365 + shift
    assert bpe.specials.sentinels == tuple(i + shift for i in ours.sentinels)
    assert bpe.specials.modes == tuple(i + shift for i in ours.modes)
    assert (bpe.specials.bos, bpe.specials.mask) == (ours.bos + shift, ours.mask + shift)
    assert len(bpe.encode(TEXT)[0]) < len(TEXT[0]) / 2  # it learnt something


def test_text_that_spells_a_special_stays_text(bpe):
    texts = ["<|eos|>", "a <|bos|><|mask|>b", "<|sentinel_7|>"]
    for text, ids in zip(texts, bpe.encode(texts), strict=True):
        assert ids.max() < bpe.specials.pad
        assert bpe.decode(ids) == text


def test_training_is_deterministic_and_follows_the_text(bpe):
    assert train_bpe(iter(TEXT), 300).fingerprint == bpe.fingerprint
    assert train_bpe(TEXT, 290).fingerprint != bpe.fingerprint
    assert train_bpe(["other words"], 300).fingerprint != bpe.fingerprint


def long_texts() -> dict[str, str]:
    rng = random.Random(1)
    letters = "".join(rng.choices("abcdefgh", k=20_000))
    words = " ".join(
        rng.choices(["cat", "mat,", "naïve", "the\n\n", "12", "don't", "  x"], k=5_000)
    )
    return {"words": words, "no spaces": letters, "ideographs": "\u6211\u5011\u3002" * 5_000}


@pytest.mark.parametrize("name", long_texts())
def test_pieces_of_a_long_text_have_the_ids_of_the_whole(bpe, tmp_path, name):
    text = long_texts()[name]
    for tokenizer in (ByteTokenizer(), bpe, open_tokenizer(bert(tmp_path))):
        parts = [text[i : i + 3_000] for i in range(0, len(text), 3_000)]
        pieces = list(iter_pieces(parts, tokenizer.find_cut, 2_000))
        assert "".join(pieces) == text
        whole = tokenizer.encode([text])[0].tolist()
        assert sum((ids.tolist() for ids in tokenizer.encode(pieces)), []) == whole
        if tokenizer is bpe or name == "words":
            assert max(map(len, pieces)) <= 2_200 and len(pieces) > 5


def test_a_tokenizer_that_marks_beginnings_is_cut_before_spaces():
    tokenizer = hf.Tokenizer(hf.models.BPE({"\u2581": 0, "a": 1, "\u2581a": 2}, [("\u2581", "a")]))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme="always")
    opened = JsonTokenizer(tokenizer.to_str().encode(), "metaspace")
    text = "a aa " * 2_000
    pieces = list(iter_pieces([text[:5000], text[5000:]], opened.find_cut, 1_000))
    assert len(pieces) > 5 and "".join(pieces) == text
    assert np.concatenate(opened.encode(pieces)).tolist() == opened.encode([text])[0].tolist()


def test_an_error_of_the_source_survives_training():
    def broken():
        yield "text"
        raise DataError("a.txt: byte 3 is not UTF-8")

    with pytest.raises(DataError, match="byte 3"):
        train_bpe(broken(), 300)


def test_saved_tokenizers_are_the_same(bpe, tmp_path):
    for tokenizer in (ByteTokenizer(), bpe):
        tokenizer.save(tmp_path)
        for spec in (str(tmp_path), str(tmp_path / "tokenizer.json")):
            again = open_tokenizer(spec)
            assert type(again) is type(tokenizer)
            assert again.fingerprint == tokenizer.fingerprint
            assert again.specials == tokenizer.specials
            assert again.vocab_size == tokenizer.vocab_size


def bert(tmp_path) -> str:
    """A tokenizer.json as BERT's: a template, truncation and padding that must not act here."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    tokenizer = hf.Tokenizer(
        hf.models.WordLevel(dict(zip(names, range(7), strict=True)), unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(names[:5])
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "bert.json"))
    return str(tmp_path / "bert.json")


def test_templates_truncation_and_padding_are_off(tmp_path):
    tokenizer = open_tokenizer(bert(tmp_path))
    assert tokenizer.encode(["hello world " * 4])[0].tolist() == [5, 6] * 4
    assert tokenizer.vocab_size == 7
    specials = tokenizer.specials
    assert (specials.pad, specials.cls, specials.sep, specials.mask) == (0, 2, 3, 4)
    assert (specials.bos, specials.eos) == (2, 3)


def test_missing_specials_are_minus_one_and_refused_by_need(tmp_path):
    tokenizer = open_tokenizer(bert(tmp_path))
    assert tokenizer.specials.sentinels == tokenizer.specials.modes == ()
    tokenizer.specials.require("mask", "cls", needed_by="masked_lm")
    with pytest.raises(DataError, match="denoising needs the token 'sentinels', which .* lacks"):
        tokenizer.specials.require("sentinels", needed_by="denoising")
    plain = hf.Tokenizer(hf.models.WordLevel({"a": 0, "b": 6}, unk_token="a"))
    plain.save(str(tmp_path / "plain.json"))
    tokenizer = open_tokenizer(str(tmp_path / "plain.json"))
    assert tokenizer.vocab_size == 7  # ids may have gaps
    assert tokenizer.specials == Specials(-1, -1, -1, -1, -1, -1, (), (), unk=0)
    assert tokenizer.non_text_ids.tolist() == [0, 1, 2, 3, 4, 5]  # "a" is the unknown token
    with pytest.raises(
        DataError, match=r"needs the token 'mask'.*mask_token in tokenizer_config.json.*<\|mask\|>"
    ):
        tokenizer.specials.require("mask", needed_by="masked_lm")


def test_sentinels_of_t5_are_in_their_order(tmp_path):
    vocab = {"a": 0, "</s>": 1} | {f"<extra_id_{i}>": 101 - i for i in range(100)}
    made = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="a"))
    made.add_special_tokens([token for token in vocab if token != "a"])
    made.save(str(tmp_path / "t5.json"))
    specials = open_tokenizer(str(tmp_path / "t5.json")).specials
    assert specials.sentinels == tuple(range(101, 1, -1))
    assert (specials.eos, specials.bos) == (1, -1)


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(DataError, match="data.tokenizer 'gpt2': No such file"):
        open_tokenizer("gpt2")
    (tmp_path / "a.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(DataError, match="a.json is not a tokenizer.json"):
        open_tokenizer(str(tmp_path / "a.json"))
    with pytest.raises(DataError, match="tokenizer.json"):
        open_tokenizer(str(tmp_path))


def test_lone_surrogates_are_refused(bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        with pytest.raises(DataError, match="lone surrogate"):
            tokenizer.encode(["a\ud800"])


def test_bpe_shortens_the_corpus():
    texts = [p.text for p in corpus.iter_documents("valid") if p.source == "bible"]
    tokenizer = train_bpe(texts, 1000)
    encoded = tokenizer.encode(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert sum(map(len, encoded)) < sum(map(len, texts)) / 2.2
    assert tokenizer.vocab_size == 1000 + 109


def test_long_texts_are_encoded_in_pieces_with_the_same_ids_and_in_order(bpe, monkeypatch):
    texts = [TEXT[0], " ".join(TEXT) * 40, "", TEXT[1], "a b " * 20_000]
    expected = bpe.encode(texts)
    longest = []
    encode = bpe.encode
    monkeypatch.setattr(marked_text, "LONG_TEXT_BYTES", 1000)
    monkeypatch.setattr(
        bpe, "encode", lambda batch: longest.append(max(map(len, batch))) or encode(batch)
    )
    found = marked_text.encode_parts(bpe, [[WeightedPart(text)] for text in texts])
    for parts, ids in zip(found, expected, strict=True):
        np.testing.assert_array_equal(parts[0], ids)
    assert max(longest) < 70_000 < max(map(len, texts))
