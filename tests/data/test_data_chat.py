"""Chats and weighed documents: what counts in the loss, where it stands, what is refused."""

import json

import numpy as np
import pytest

from configs.post_training import chat as config
from data.chats.templates import CHAT_TEMPLATES, parse_chat
from data.loader import Batches, eval_batches
from data.open_stores import open_data
from data.packing import PackedRows
from data.readers.read_policy import ErrorPolicy
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from errors import ConfigError, DataError
from objectives import CausalLM
from settings.changes import with_changes
from settings.tree import freeze
from training.settings import Settings

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]
STRICT = ErrorPolicy("strict", "train", ReadStats())


@pytest.mark.parametrize(
    ("name", "whole", "replies"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\nCiao<|im_end|>\n",
            ["Hi<|im_end|>\n", "Ciao<|im_end|>\n"],
        ),
        (
            "vicuna",
            "Be brief. USER: Hello ASSISTANT: Hi</s>USER: Bye ASSISTANT: Ciao</s>",
            ["Hi</s>", "Ciao</s>"],
        ),
        (
            "llama2",
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi [INST] Bye [/INST] Ciao ",
            ["Hi ", "Ciao "],
        ),
    ],
)
def test_a_template_frames_messages_and_replies_count(name, whole, replies):
    """Texts as the authors of each format show them."""
    found = parse_chat({"messages": TALK}, CHAT_TEMPLATES[name], "here", STRICT)
    assert found.text == whole
    assert [part.text for part in found.parts if part.weight == 1] == replies


def test_the_ready_config_reads_the_chats_that_it_writes(tmp_path):
    config.write_example_chats(tmp_path / "chats.jsonl")
    settings = freeze(Settings, config.get_config())
    lines = (tmp_path / "chats.jsonl").read_text().splitlines()
    found = parse_chat(
        json.loads(lines[0]), CHAT_TEMPLATES[settings.data.chat_template], "here", STRICT
    )
    assert len(lines) == config.N_CHATS
    said = "In the beginning God created the heavens and the earth.</s>"
    assert found.text.startswith("USER: In the beginning of God's preparing the heavens")
    assert [part.text for part in found.parts if part.weight == 1] == [said]


@pytest.fixture
def lines(tmp_path):
    def made(records, **changes):
        (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, records)))
        return DataConfig(
            source="jsonl",
            path=str(tmp_path / "chat.jsonl"),
            cache=str(tmp_path / "cache"),
            valid_share=0.1,
            test_share=0.1,
            **changes,
        )

    return made


def rows_of(store, length, **options):
    packed = PackedRows(store, length, 1)
    return Batches(packed, 1, CausalLM().make_row, 0, **options)


def test_replies_alone_are_targets_wherever_rows_cut_them(lines):
    records = [
        {"messages": TALK[1:3] + [{"role": "user", "content": f"and {i}?"}, TALK[4]]}
        for i in range(30)
    ]
    data = open_data(lines(records, chat_template="vicuna"))
    for length in (7, 64):
        rows, targets, positions = rows_of(data.train, length), [], 0
        for step in range(len(rows)):
            row = rows[step]
            targets += row["targets"][0][row["weights"][0] == 1].tolist()
            positions += int((row["segment_ids"] != 0).sum())
        text = bytes(t for t in targets if t < 256).decode()
        count = data.train.n_documents
        assert text == "Hi</s>Ciao</s>" * count
        assert len(targets) == data.train.n_targets == count * (14 + 1)  # and its end
        assert positions == data.train.n_tokens + count
        assert data.train.text_bytes == 14 * count


def test_a_weight_of_a_document_is_that_of_its_tokens_and_judges_nothing(lines):
    records = [{"text": f"text {i}", "weight": i % 3 / 2} for i in range(60)]
    data = open_data(lines(records, weight_field="weight"))
    rows, seen = rows_of(data.train, 9), set()
    for step in range(len(rows)):
        row = rows[step]
        for segment in set(row["segment_ids"][0].tolist()) - {0}:
            own = row["weights"][0][row["segment_ids"][0] == segment]
            assert len(set(own.tolist())) == 1
            seen.add(float(own[0]))
    assert seen == {0.0, 0.5, 1.0}
    judged = eval_batches(PackedRows(data.train, 9, 1), 1, CausalLM().make_row)
    weights = np.concatenate([judged[i]["weights"][0] for i in range(len(judged))])
    assert set(weights.tolist()) == {0.0, 1.0} and weights.sum() == data.train.n_targets


@pytest.mark.parametrize(
    ("record", "changes", "said"),
    [
        (
            {"text": "x"},
            {"chat_template": "chatml"},
            "no list of messages under 'messages'; it holds: text",
        ),
        (
            {"messages": []},
            {"chat_template": "chatml"},
            r"\[\] under 'messages' is no list of messages",
        ),
        ({"messages": TALK[:2]}, {"chat_template": "chatml"}, "no reply by the assistant"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            {"chat_template": "vicuna"},
            "robot.*a role",
        ),
        ({"messages": ["hello"]}, {"chat_template": "vicuna"}, "hello.*must have a role"),
        ({"text": "x", "weight": -1}, {"weight_field": "weight"}, "-1 under 'weight'.*>= 0"),
        ({"text": "x", "weight": True}, {"weight_field": "weight"}, "True under 'weight'.*>= 0"),
        ({"text": "x"}, {"weight_field": "weight"}, "None under 'weight'"),
        (["x"], {"chat_template": "chatml"}, "holds list, must hold an object"),
    ],
)
def test_what_is_no_chat_is_refused_by_its_place(lines, record, changes, said):
    # covers D16
    with pytest.raises(DataError, match=f"chat.jsonl: the line at byte 0.*{said}") as error:
        open_data(lines([record], **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"chat_template": "chatml"}}, "need data.source jsonl"),
        (
            {
                "data": {"source": "jsonl", "path": "x", "chat_template": "chatml"},
                "objective": "denoising",
            },
            "denoising rearranges text",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        with_changes(Settings(), changes)
