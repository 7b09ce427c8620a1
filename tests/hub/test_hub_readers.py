"""Slow: exports that predict masked tokens, write to a source, chat, or are encoders alone.

The classes of transformers read them, and compute what the model here computes.
"""

import json
import subprocess
from pathlib import Path

import hub_goldens as goldens
import numpy as np
import peers
import pytest
import tiny_runs
from tokenizer_files import write_words

import hub
from data.chats.templates import find_template, reply_prompt
from data.tokenizers import open_tokenizer
from eval.load_run import load_run
from eval.text_generation import TextRequest, continue_texts, encode_prompt, text_model
from hub import run as runs
from hub import safetensors_io

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/published_reader.py"
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5 = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(20)))
CHAT = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
NEW_TOKENS = 8


def ask(tmp_path: Path, requests: list[dict]) -> list[dict]:
    """Returns the answers of transformers."""
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    files = [str(tmp_path / name) for name in ("requests.json", "answers.json")]
    argv = [peers.peer_python(), str(SCRIPT), *files]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads((tmp_path / "answers.json").read_text())


def export(golden: str, folder: Path, specials: tuple[str, ...], frame: str, drop: tuple = ()):
    """Imports a golden without the tensors that `drop` names, and exports it with a tokenizer."""
    source = goldens.copy(golden, folder.with_suffix(".source"), exclude=("model.safetensors",))
    tensors = goldens.arrays(golden, "model")
    prefix = "bert." if "cls." in drop else ""
    chosen = {
        n.removeprefix(prefix): t for n, t in tensors.items() if not any(d in n for d in drop)
    }
    safetensors_io.write_shards(source, chosen.items())
    if specials:
        config = json.loads((source / "config.json").read_text())
        write_words(source, specials, single=frame, config=config)
    model, config, _ = hub.load(source)
    tokenizer = open_tokenizer(str(source)) if specials else None
    hub.save(model, config, folder, tokenizer=tokenizer)
    return tokenizer


KINDS = {
    # golden, class, special tokens, frame, tensors that are left out, class that reads it
    "BertForPreTraining": ("bert", "AutoModelForMaskedLM", BERT, "[CLS] $A [SEP]", ()),
    "BertForMaskedLM": (
        *("bert", "AutoModelForMaskedLM", BERT, "[CLS] $A [SEP]"),
        ("pooler", "seq_relationship"),
    ),
    "RobertaForMaskedLM": ("roberta", "AutoModelForMaskedLM", (), "", ()),
    "ModernBertForMaskedLM": ("modernbert", "AutoModelForMaskedLM", (), "", ()),
    "BertModel": ("bert", "AutoModel", BERT, "[CLS] $A [SEP]", ("cls.",)),
    "T5ForConditionalGeneration": ("t5_v1_1", "AutoModelForSeq2SeqLM", T5, "$A </s>", ()),
    "T5 tied": ("t5_v1_0", "AutoModelForSeq2SeqLM", T5, "$A </s>", ()),
    "Switch": ("switch_transformers", "AutoModelForSeq2SeqLM", T5, "$A </s>", ()),
}


def test_published_classes_read_masked_models_encoders_and_encoder_decoders(tmp_path):
    requests, expected = [], []
    for name, (golden, kind, specials, frame, drop) in KINDS.items():
        folder = tmp_path / name.replace(" ", "-")
        tokenizer = export(golden, folder, specials, frame, drop)
        ids = np.arange(10, 34, dtype=np.int32).reshape(2, 12)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if kind == "AutoModelForSeq2SeqLM":
            inputs["decoder_input_ids"] = ids[:, 2:8]
        outputs = hub.forward(folder, inputs | {"prompt_ids": ids}, "float32")
        text = "w1 w2 w3"
        framed = None
        if tokenizer is not None:
            f = tokenizer.framing
            framed = [*f.text_prefix, *tokenizer.encode([text])[0].tolist(), *f.text_suffix]
        expected.append((name, outputs, framed))
        lists = {key: value.tolist() for key, value in inputs.items()}
        text = text if framed else ""
        requests.append({"folder": str(folder), "kind": kind, "inputs": lists, "text": text})
    for (name, outputs, framed), answer in zip(expected, ask(tmp_path, requests), strict=True):
        assert answer["unread"] == [] or name == "BertForPreTraining", (name, answer["unread"])
        # AutoModelForMaskedLM takes its own class, which leaves the other head unread.
        if name.startswith(("Bert", "Roberta", "Modern")):
            assert answer["class"] == name.replace("PreTraining", "MaskedLM")
        key = "last_hidden_state" if name == "BertModel" else "logits"
        rms = np.sqrt(np.mean(np.square(outputs[key])))
        np.testing.assert_allclose(answer["output"], outputs[key], atol=2e-4 * rms, err_msg=name)
        if "greedy" in answer:
            ours = outputs["greedy_ids"][:, :NEW_TOKENS]
            assert np.array(answer["greedy"])[:, 1:].tolist() == ours.tolist(), name
        assert answer.get("ids") == framed, name


def test_a_chat_run_is_read_with_its_template_and_all_of_its_stops(tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    ids = write_words(words, CHAT, plain=("user", "assistant"), single="<s> $A", config=config)
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"w{i % 9} w{i // 9}"},
                {"role": "assistant", "content": f"w{i % 9 + 1}"},
            ]
        }
        for i in range(72)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {
        "data.source": "jsonl",
        "data.path": tmp_path / "chats.jsonl",
        "data.chat_template": "chatml",
        "data.tokenizer": words,
        "data.max_shared": 1.0,
        "data.cache": tmp_path / "cache",
        "train.steps": 60,
        "optimizer.learning_rate": 0.01,
    }
    assert tiny_runs.run(*tiny_runs.flags(settings, tmp_path / "run")) == 0
    runs.export_run(tmp_path / "run", tmp_path / "out")
    question = [("user", "w3 w2")]
    messages = [{"role": role, "content": content} for role, content in question]
    request = {"folder": str(tmp_path / "out"), "kind": "chat", "messages": messages}
    (answer,) = ask(tmp_path, [request])
    ctx = load_run(tmp_path / "run")[0]
    target = text_model(ctx)
    template = find_template("chatml", target.tokenizer)
    prompt = encode_prompt(target.tokenizer, target.reads, reply_prompt(question, template))
    assert answer["prompt"] == prompt.tolist()
    assert (answer["stops"], answer["eos"]) == ([4, 2], "<|im_end|>")
    assert set(target.reads.stop_ids) | {ids["<|im_end|>"]} == {4, 2}
    stops = target.reads._replace(stop_ids=(2, 4))
    own = continue_texts(target._replace(reads=stops), [TextRequest(0, prompt, NEW_TOKENS)], 0)[0]
    theirs = [i for i in answer["ids"] if i not in (2, 4)]
    assert target.tokenizer.decode(theirs) == own.text.strip() and own.n_tokens == len(theirs)
    assert own.text and own.finish_reason == "stop" and answer["ids"][-1] == ids["<|im_end|>"]
