"""Splits by place: corpora of few documents, borders, documents without tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.loss_weights import WeightedDocument, WeightedPart
from data.readers.long_text import LONG_TEXT_BYTES, LongText
from data.splits import Document, assign_splits, find_cuts, plan_hold_out

SHARES = {"valid": 0.01, "test": 0.01}


def split_of(documents: list[Document], **options) -> dict[str, list[Document]]:
    plan = plan_hold_out(documents, SHARES, **options)
    found: dict[str, list[Document]] = {"train": [], "valid": [], "test": []}
    for split, text in assign_splits(documents, plan):
        found[split].append(text)
    return found


def test_few_documents_are_cut_at_their_ends():
    books = [
        "".join(f"{name} has line {i}.\n" for i in range(500)) for name in ("Ada", "Bob", "Eva")
    ]
    found = split_of(books)
    assert ["".join(parts) for parts in zip(*found.values(), strict=True)] == books
    for split in ("valid", "test"):
        assert all(
            len(text) == pytest.approx(len(books[0]) / 100, rel=0.5) for text in found[split]
        )
        assert all(" has line " in text and text[3] == " " for text in found[split])
    assert split_of([*books, books[0]])["valid"] == [*found["valid"], found["valid"][0]]


def test_documents_of_equal_size_are_held_out_whole_when_they_are_many():
    documents = [f"document {i:3} has some words" for i in range(50)]
    found = split_of(documents)
    assert sorted(sum(found.values(), [])) == sorted(documents)
    assert all(found.values())
    # One document has nearly all of the text, and would be held out whole by its hash.
    for number in range(20):
        long = f"book {number} " + "of many words, " * 1000
        assert sum(map(len, split_of([*documents, long])["train"])) > 0.8 * len(long)


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4, unique=True))
def test_no_text_is_lost_by_a_cut(documents):
    found = split_of(documents)
    assert sorted("".join(sum(found.values(), []))) == sorted("".join(documents))
    if max(len(text.rstrip().encode()) for text in documents) > 2 * 4:
        assert found["train"] and found["valid"] and found["test"]


BREAKS = {
    "paragraph": "a line\nof it\n\n",
    "windows": "a line\r\nof it\r\n\r\n",
    "line": "a line of it\n",
    "sentence": "It is so. ",
    "word": "word ",
    "ideographs": "\u6211\u5011\u3002",
    "no border": "\u00e9",
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_cut_is_at_the_best_border(name):
    unit = BREAKS[name].encode()
    raw = unit * (4000 // len(unit))
    cuts = find_cuts(memoryview(raw), SHARES | {"test": 0.02}, at_least_one=True)
    assert all(cut % len(unit) == 0 for cut in cuts)
    assert len(raw) - cuts[1] == pytest.approx(80, abs=40 + len(unit))
    assert cuts[1] - cuts[0] == pytest.approx(40, abs=60)


def test_white_space_at_the_end_is_no_split():
    found = split_of(["The text. " * 100 + "\n" * 5000])
    assert found["valid"][0].strip() and found["test"][0].strip()


def test_documents_without_tokens_fill_no_split():
    documents = [f"text {i}" for i in range(50)]
    whole = split_of(documents)
    empty = {whole["valid"][0], whole["test"][0]}
    found = split_of(documents, has_tokens=lambda document: document not in empty)
    assert set(found["valid"]) - empty and set(found["test"]) - empty
    blank = split_of([*documents, *(" " * i for i in range(100))])
    assert {t for t in blank["valid"] + blank["test"] if not t.strip()} == set()


def test_chats_and_text_pairs_are_never_cut():
    pairs = [("anchor " * 50, "match"), ("another " * 90, "match"), ("third", "match")]
    found = split_of(pairs)
    assert sorted(sum(found.values(), [])) == sorted(pairs)
    assert all(found.values())
    chat = WeightedDocument((WeightedPart("Hello? " * 50, 0.0), WeightedPart("Hi. " * 50, 1.0)))
    assert chat in sum(split_of([chat]).values(), [])
    weighted = split_of([WeightedDocument((WeightedPart("Some words. " * 50, 0.5),))])
    assert {part.parts[0].weight for parts in weighted.values() for part in parts} == {0.5}
    assert "".join(part.text for parts in weighted.values() for part in parts) == (
        "Some words. " * 50
    )


def test_a_long_text_is_cut_as_a_short_one():
    text = "".join(f"Line {i} of a long text.\n" for i in range(LONG_TEXT_BYTES // 10))
    short, long = split_of([text]), split_of([LongText(text.encode())])
    joined = {
        split: ["".join(t.pieces()) if isinstance(t, LongText) else t for t in found]
        for split, found in long.items()
    }
    assert joined["valid"] == short["valid"] and joined["test"] == short["test"]
    assert isinstance(long["train"][0], LongText)
    assert sum(map(len, sum(joined.values(), []))) == len(text)
