"""Tokenizers that lose bytes of the text: the share that decodes back, and who says so."""

import json

import pytest
import tokenizers as hf

from data.open_stores import open_data
from data.round_trip import RoundTrip, bytes_that_decode_back, lossy_sentence
from data.settings import DataConfig
from data.tokenizers import ByteTokenizer, open_tokenizer, train_bpe


@pytest.fixture
def lowering(tmp_path):
    """A tokenizer of four words, in small letters, with [UNK]."""
    words = ["[UNK]", "the", "cat", "sat", "here"]
    made = hf.Tokenizer(hf.models.WordLevel(dict(zip(words, range(5), strict=True)), "[UNK]"))
    made.normalizer = hf.normalizers.Lowercase()
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[UNK]"])
    made.save(str(tmp_path / "words.json"))
    return open_tokenizer(str(tmp_path / "words.json"))


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("the cat sat", 11),
        ("The cat sat", 10),  # "T"
        ("the dog sat", 7),  # "dog" and a space; one space is decoded for two
        ("the   cat", 7),  # two spaces
        ("dog", 0),
    ],
)
def test_lost_bytes_are_counted_one_by_one(lowering, text, back):
    assert bytes_that_decode_back(lowering, text) == back


def test_a_long_text_is_compared_in_pieces(lowering):
    text = "The cat sat here " * 200  # one letter of 17 is lost, and the last space
    assert bytes_that_decode_back(lowering, text) == pytest.approx(16 / 17 * len(text), rel=5e-3)


def test_tokenizers_of_bytes_lose_nothing():
    text = "Caf\u00e9 \U0001f600  two  spaces\r\n\x00 <|eos|> end " * 3
    for tokenizer in (ByteTokenizer(), train_bpe(["some text to learn from"] * 3, 280)):
        measured = RoundTrip(tokenizer)
        measured.add([text], tokenizer.encode([text]))
        assert measured.share == 1.0
    assert RoundTrip(ByteTokenizer()).share == 1.0


def test_an_unknown_word_outside_the_sample_counts(lowering):
    texts = ["the cat sat here"] * 20_000 + ["dog"]  # ten times the sample
    measured = RoundTrip(lowering)
    measured.add(texts[:-1], lowering.encode(texts[:-1]))
    assert measured.share == 1.0
    measured.add(texts, lowering.encode(texts))
    assert measured.share < 1.0


def test_a_store_holds_the_share_and_the_sentence_names_it(lowering, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" ".join(["The cat sat here"] * 40))
    paths = {"path": "train", "valid_path": "valid", "test_path": "test"}
    config = {key: str(tmp_path / f"{name}.txt") for key, name in paths.items()}
    config |= {"source": "text", "cache": str(tmp_path / "cache"), "max_shared": 1.0}
    shares = open_data(DataConfig(**config, tokenizer=str(tmp_path / "words.json"))).decodes_back
    assert shares == pytest.approx(dict.fromkeys(("train", "valid", "test"), 16 / 17), rel=5e-3)
    assert lossy_sentence(shares).startswith("The tokenizer is lossy: 94")
    lossless = open_data(DataConfig(**config))
    assert lossy_sentence(lossless.decodes_back) == "" == lossy_sentence({})
    index = json.loads((lossless.folder / "test/index.json").read_text())
    assert index["decodes_back"] == 1.0
