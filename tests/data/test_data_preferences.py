"""Preferences as records: every way to spell one, what is refused, and what the template writes."""

import json

import pytest
from data_stores import BOS, EOS

from data.chats.templates import find_template, reply_prompt
from data.open_stores import open_data
from data.settings import DataConfig
from data.store import TokenStore
from data.tokenizers import ByteTokenizer
from errors import DataError


@pytest.fixture
def lines(tmp_path):
    """A function from records to the settings that read them as JSON lines."""

    def made(records, **changes):
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
        shares = {"valid_share": 0.2, "test_share": 0.2}
        files = {"path": str(tmp_path / "pairs.jsonl"), "cache": str(tmp_path / "cache")}
        return DataConfig(source="jsonl", **files, **shares, **changes)

    return made


def texts_of(store: TokenStore) -> list[tuple[str, ...]]:
    words = [bytes(store.document(d).tolist()).decode() for d in range(store.n_documents)]
    return list(zip(words[::3], words[1::3], words[2::3], strict=True))


def read(config: DataConfig) -> list[tuple[str, ...]]:
    data = open_data(config, ("preferences",))
    return sorted(r for split in (data.train, data.valid, data.test) for r in texts_of(split))


def simple(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(count)]


def test_texts_are_stored_as_they_are(lines):
    records = simple(30)
    assert read(lines(records)) == sorted(tuple(record.values()) for record in records)


def test_preferences_with_one_prompt_stay_in_one_split(lines):
    # covers D15
    records = [record | {"prompt": f"p{i % 20}"} for i, record in enumerate(simple(100))]
    data = open_data(lines(records), ("preferences",))
    prompts = [{texts[0] for texts in texts_of(s)} for s in (data.train, data.valid, data.test)]
    assert all(prompts) and sum(map(len, prompts)) == 20
    assert sum(data.record_counts) == 100 and data.train.text_bytes == sum(
        len(chosen) + len(rejected) for _, chosen, rejected in texts_of(data.train)
    )


def test_every_way_to_spell_a_chat(lines):
    """The prompt is the text that precedes a reply in training on chats."""

    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    turns = [{"role": "system", "content": "Be brief."}, user("1"), assistant("2"), user("3")]
    records = simple(20) + [
        {"prompt": "q", "chosen": "y", "rejected": "n"},
        {"prompt": [user("q")], "chosen": [assistant("y2")], "rejected": [assistant("n2")]},
        {"prompt": "q", "chosen": [user("q"), assistant("y3")], "rejected": "n3"},
        {"chosen": [*turns, assistant("y4")], "rejected": [*turns, assistant("n4")]},
    ]
    found = {texts[1]: texts for texts in read(lines(records, chat_template="vicuna"))}
    assert len(found) == 24
    for reply, other in (("y", "n"), ("y2", "n2"), ("y3", "n3")):
        assert found[f"{reply}</s>"] == ("USER: q ASSISTANT: ", f"{reply}</s>", f"{other}</s>")
    template = find_template("vicuna", ByteTokenizer())
    parts = reply_prompt([(m["role"], m["content"]) for m in turns], template)
    expected = "".join(part.text for part in parts)
    assert expected == "Be brief. USER: 1 ASSISTANT: 2</s>USER: 3 ASSISTANT: "
    assert found["y4</s>"] == (expected, "y4</s>", "n4</s>")


REPLY = {"role": "assistant", "content": "x"}
QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("record", "template", "said"),
    [
        (
            {"prompt": "q", "chosen": "x"},
            "",
            "must hold prompt, chosen, rejected; it holds: prompt",
        ),
        ({"chosen": "x", "rejected": "y"}, "", "must hold prompt, chosen, rejected"),
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "", "one text under 'chosen' and 'reje"),
        ({"prompt": "q", "chosen": " ", "rejected": "y"}, "", "no text under 'chosen'"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "", "no text under 'prompt'"),
        ({"prompt": "q", "chosen": "x", "rejected": 3}, "", "no text under 'rejected'"),
        (
            {"prompt": [QUESTION], "chosen": "x", "rejected": "y"},
            "",
            "no text under 'prompt'; messages need data.chat_template",
        ),
        ({"prompt": "q", "chosen": "x"}, "vicuna", "must hold prompt, chosen, rejected"),
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "vicuna", "one text under 'chosen'"),
        ({"prompt": "q", "chosen": "x", "rejected": ""}, "vicuna", "no reply .* under 'rejected'"),
        ({"prompt": 7, "chosen": "x", "rejected": "y"}, "vicuna", "no reply .* under 'chosen'"),
        (
            {"chosen": [QUESTION, REPLY], "rejected": [QUESTION]},
            "vicuna",
            "no reply .* under 'rejected'",
        ),
        (
            {"chosen": [QUESTION, REPLY], "rejected": [{**QUESTION, "content": "z"}, REPLY]},
            "vicuna",
            "chats that differ before the reply",
        ),
        (
            {"prompt": [{"role": "boss"}], "chosen": "x", "rejected": "y"},
            "vicuna",
            "has a message .*must have a role",
        ),
        (
            {"chosen": [REPLY], "rejected": [{**REPLY, "content": "y"}]},
            "llama2",
            None,  # The template writes what precedes a reply.
        ),
    ],
)
def test_a_record_without_a_preference_is_refused_by_its_place(lines, record, template, said):
    # covers N17 D16
    records = [*simple(1), record, *simple(20)[1:]]
    if said is None:
        assert len(read(lines(records, chat_template=template))) == 21
        return
    with pytest.raises(DataError, match=f"pairs.jsonl: the line at byte 51 .*{said}") as error:
        read(lines(records, chat_template=template))
    assert "\n" not in str(error.value) and "data.on_error to skip" in str(error.value)
    data = open_data(lines(records, chat_template=template, on_error="skip"), ("preferences",))
    splits = data.train, data.valid, data.test
    assert sum(s.index["skipped"] for s in splits) == 1
    assert sum(data.record_counts) == 20


def test_a_frame_that_the_template_writes_is_not_stored_twice(lines, tmp_path):
    """The template of a model's files writes bos before a chat and eos after a reply."""
    import tokenizers as hf

    letters = {chr(i): i for i in range(32, 127)}
    specials = {"<s>": 200, "</s>": 201}
    vocab = {t: i for i, t in enumerate([*letters, *specials])}
    tokenizer = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([*specials])
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    program = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}Q{{ m['content'] }}"
        "{% else %}A{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}"
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": program}
    config |= {"add_bos_token": True, "add_eos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    settings = lines(simple(20), chat_template="tokenizer", tokenizer=str(folder))
    data = open_data(settings, ("preferences",))
    ids = [data.train.document(d).tolist() for d in range(3)]
    texts = ["".join([*letters, *specials][i] for i in text) for text in ids]
    number = texts[0][2:-1]
    assert texts == [f"Qp{number}A", f"c{number}", f"r{number}"]
    assert data.train.bos >= 0 and data.train.eos >= 0


def test_the_embedded_corpus_prefers_plain_english(tmp_path):
    """A verse follows the one before it; the first 50 of each split."""
    data = open_data(DataConfig(cache=str(tmp_path), max_documents=50), ("preferences",))
    assert data.record_counts == (50, 50, 50)
    first = texts_of(data.valid)[0]
    assert first[0].startswith("Now it happened in the days of Ahasuerus") and first[0][-1] == "\n"
    assert first[1] != first[2]
    assert BOS not in data.valid.document(0) and EOS not in data.valid.document(1)
